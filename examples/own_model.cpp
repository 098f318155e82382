// SPDX-License-Identifier: Apache-2.0

// Trains a torch::nn model of this program's own by DPO, as a whole run: checkpoints, resume,
// metrics.jsonl, samples and report.html in the folder that is given.
//   example_own_model DIR [STEPS]       again with more STEPS: resumes

#include <fmt/format.h>
#include <torch/nn/functional/activation.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "prefopt/policy/module_policy.h"
#include "prefopt/prefopt.h"
#include "prefopt/train/epoch_rows.h"

using namespace prefopt;

namespace {

constexpr std::int64_t kVocab = 259;  // the byte tokenizer's
constexpr std::int64_t kWidth = 32;

// One layer of attention with learned positions. hidden() and head_weight() in place of forward():
// the library multiplies by the head itself, for completion tokens only.
class TinyTransformer : public torch::nn::Cloneable<TinyTransformer> {
 public:
  TinyTransformer() { reset(); }

  void reset() override {
    tokens = register_module("tokens", torch::nn::Embedding(kVocab, kWidth));
    positions = register_module("positions", torch::nn::Embedding(256, kWidth));
    qkv = register_module("qkv", torch::nn::Linear(kWidth, 3 * kWidth));
    output = register_module("output", torch::nn::Linear(kWidth, kWidth));
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth})));
  }

  at::Tensor hidden(const at::Tensor& ids, const at::Tensor& /*mask*/) {
    const std::int64_t length = ids.size(1);
    const auto x = tokens(ids) + positions(at::arange(length));
    const auto parts = qkv(norm(x)).chunk(3, -1);
    auto scores = at::matmul(parts[0], parts[1].transpose(1, 2)) / std::sqrt(double{kWidth});
    const auto future = at::ones({length, length}, at::kBool).triu(1);
    const auto weights = at::softmax(scores.masked_fill(future, -1e9), -1);
    return norm(x + output(at::matmul(weights, parts[2])));
  }
  at::Tensor head_weight() const { return tokens->weight; }

 private:
  torch::nn::Embedding tokens = nullptr, positions = nullptr;
  torch::nn::Linear qkv = nullptr, output = nullptr;
  torch::nn::LayerNorm norm = nullptr;
};

// Pairs of a rule: answer in small letters.
std::vector<TokenRow> make_rows(const Tokenizer& tokenizer) {
  std::vector<TokenRow> rows;
  for (const std::string word :
       {"red", "green", "blue", "white", "black", "brown", "pink", "grey"}) {
    std::string loud = word;
    for (char& letter : loud) letter = static_cast<char>(letter - 'a' + 'A');
    TokenRow row;
    row.prompt = tokenizer.encode("Name a colour: ");
    row.prompt.push_back(static_cast<std::int64_t>(word[0]));
    row.chosen = tokenizer.encode(word);
    row.rejected = tokenizer.encode(loud);
    rows.push_back(row);
  }
  return rows;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: example_own_model DIR [STEPS]\n");
    return 2;
  }
  at::manual_seed(1);
  const auto tokenizer = make_tokenizer("byte");
  auto rows = make_rows(*tokenizer);
  EpochData data{.rows = rows, .held_out = {rows.begin(), rows.begin() + 2}};
  data.tokenizer = tokenizer;

  RunOptions options;
  options.output_dir = argv[1];
  options.optimizer = {.learning_rate = 1e-2, .schedule = Schedule::kConstant};
  options.batch.steps = argc > 2 ? std::atoi(argv[2]) : 30;
  options.batch.rows = 4;
  options.checkpoint.every = 10;
  options.evaluate.every = 10;
  RunEvents events;
  events.step = [](std::int64_t step, std::int64_t total, const Metrics& metrics) {
    if (step % 10 == 0)
      fmt::print("step {}/{}: loss {:.4f}\n", step, total, metric(metrics, "loss"));
  };

  const auto policy =
      std::make_shared<ModulePolicy<TinyTransformer>>(std::make_shared<TinyTransformer>(), kVocab);
  const auto reference = make_frozen_reference(policy->frozen_copy());
  const auto source =
      std::make_shared<EpochRows>(std::move(data), EpochOptions{.batch_size = options.batch.rows});
  const RunResult result = run(policy, reference, source, options, events, "auto");
  fmt::print("margin on held-out rows: {:.3f} before, {:.3f} after; see {}/report.html\n",
             metric(result.first_evaluation, "rewards/margins"),
             metric(result.last_evaluation, "rewards/margins"), options.output_dir);
  return 0;
}
