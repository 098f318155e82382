// SPDX-License-Identifier: Apache-2.0

// HyPO: offline pairs for the preference, fresh samples of the policy at each step for the KL.
//   train_hypo [STEPS] [LAMBDA]
// The trainer sees from the loss's requirements that it must sample, and does.

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/data/controlled_task.h"
#include "prefopt/data/dataset.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/losses/pair/hypo.h"
#include "prefopt/losses/pair/sft.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/trainer.h"

using namespace prefopt;

namespace {

std::vector<TokenRow> load(const std::string& path, bool pairs) {
  const ByteTokenizer tokenizer;
  return load_dataset(path, tokenizer, {.train = path}, {.rejected = pairs}).pairs;
}

std::vector<TokenRow> rows(const std::vector<TokenRow>& all, std::int64_t step, std::size_t n) {
  std::vector<TokenRow> batch;
  for (std::size_t i = 0; i < n; ++i) {
    batch.push_back(all[(static_cast<std::size_t>(step) * n + i) % all.size()]);
  }
  return batch;
}

int run(std::int64_t steps, double lambda) {
  const auto folder = std::filesystem::temp_directory_path();
  const std::string sft_file = (folder / "train_hypo-sft.jsonl").string();
  const std::string pair_file = (folder / "train_hypo-pairs.jsonl").string();
  ControlledTask task({.seed = 2});
  task.write_sft(sft_file, 512);
  task.write_preferences(pair_file, 256);

  auto policy = std::make_shared<Decoder>(DecoderOptions{.hidden_size = 64,
                                                         .intermediate_size = 128,
                                                         .num_hidden_layers = 2,
                                                         .num_attention_heads = 4,
                                                         .num_key_value_heads = 4});
  // A reference worth staying close to: a little supervised training first.
  Trainer sft(policy, nullptr, SftLoss(),
              {.optimizer = {.learning_rate = 3e-3}, .total_steps = steps});
  const std::vector<TokenRow> sft_rows = load(sft_file, false);
  for (std::int64_t step = 0; step < steps; ++step) sft.step(rows(sft_rows, step, 32));

  Trainer trainer(policy, make_frozen_reference(policy->frozen_copy()),
                  HypoLoss({.beta = 0.1, .lambda = lambda, .num_samples = 4}),
                  {.optimizer = {.learning_rate = 5e-4},
                   .total_steps = steps,
                   .sampling = {.max_new_tokens = 12, .eos_id = ByteTokenizer().eos_id()}});
  const std::vector<TokenRow> pairs = load(pair_file, true);
  for (std::int64_t step = 0; step < steps; ++step) {
    const Metrics metrics = trainer.step(rows(pairs, step, 16));
    fmt::print("step {:3}  loss {:.4f}  margin {:+.4f}  KL on fresh samples {:+.4f} nats\n",
               step + 1, metric(metrics, "loss"), metric(metrics, "rewards/margins"),
               metric(metrics, "kl"));
  }
  std::filesystem::remove(sft_file);
  std::filesystem::remove(pair_file);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 ? std::atoll(argv[1]) : 20, argc > 2 ? std::atof(argv[2]) : 0.05);
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
