// SPDX-License-Identifier: Apache-2.0

// The gain from sending the beginning that chosen and rejected share through the model once (target
// S3), and how a step grows with pairs, lengths and vocabulary (target S6). Random tokens through a
// decoder of SmolLM2-135M's shape with random weights; log-probs and all gradients.

#include <ATen/Parallel.h>
#include <ATen/ops/randint.h>
#include <fmt/format.h>
#include <malloc.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/utils.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/measure.h"

namespace prefopt::bench {
namespace {

struct Lengths {
  std::int64_t prompt, chosen, rejected;
};

struct Arguments {
  int threads = 2, repeat = 10;
  std::string json;
};

std::shared_ptr<Decoder> make_model(std::int64_t vocab_size) {
  return std::make_shared<Decoder>(DecoderOptions{.vocab_size = vocab_size,
                                                  .hidden_size = 576,
                                                  .intermediate_size = 1536,
                                                  .num_hidden_layers = 30,
                                                  .num_attention_heads = 9,
                                                  .num_key_value_heads = 3});
}

std::vector<std::int64_t> random_tokens(std::int64_t count, std::int64_t vocab_size) {
  const at::Tensor ids = at::randint(0, vocab_size, {count}, at::kLong);
  return {ids.const_data_ptr<std::int64_t>(), ids.const_data_ptr<std::int64_t>() + count};
}

std::vector<TokenRow> random_pairs(std::int64_t count, const Lengths& lengths,
                                   std::int64_t vocab_size) {
  std::vector<TokenRow> pairs;
  for (std::int64_t i = 0; i < count; ++i) {
    pairs.push_back({.prompt = random_tokens(lengths.prompt, vocab_size),
                     .chosen = random_tokens(lengths.chosen, vocab_size),
                     .rejected = random_tokens(lengths.rejected, vocab_size)});
  }
  return pairs;
}

/// The same sizes, but the rejected completions follow other prompts, so that nothing is shared.
TokenBatch apart(const std::vector<TokenRow>& pairs, std::int64_t vocab_size) {
  std::vector<std::vector<std::int64_t>> others;
  for (const auto& pair : pairs)
    others.push_back(random_tokens(std::ssize(pair.prompt), vocab_size));
  std::vector<TokenSequence> sequences;
  for (const auto& pair : pairs) sequences.push_back({pair.prompt, pair.chosen});
  for (std::size_t i = 0; i < pairs.size(); ++i)
    sequences.push_back({others[i], pairs[i].rejected});
  return make_batch(sequences);
}

void forward_backward(Decoder& model, const TokenBatch& batch) {
  sequence_logps(model, batch).logps.sum().backward();
  for (const auto& parameter : model.named_parameters()) parameter.value.mutable_grad().reset();
}

nlohmann::json sharing(const Arguments& a) {
  const auto model = make_model(49152);
  nlohmann::json rows;
  fmt::print("{:<20} {:>12} {:>12} {:>8} {:>8} {:>8}\n", "P / C / R, one pair", "shared ms",
             "apart ms", "times", "bound", "of it");
  for (const Lengths& l : {Lengths{114, 40, 48}, Lengths{694, 178, 178}}) {
    const auto pairs = random_pairs(1, l, 49152);
    const TokenBatch shared = make_pair_batch(pairs);
    const TokenBatch unshared = apart(pairs, 49152);
    const auto timings =
        time_interleaved({{.name = "shared", .run = [&] { forward_backward(*model, shared); }},
                          {.name = "apart", .run = [&] { forward_backward(*model, unshared); }}},
                         a.repeat, /*warmup=*/1, [] {});
    const double times = timings[1].median_ms() / timings[0].median_ms();
    const auto all = static_cast<double>(2 * l.prompt + l.chosen + l.rejected);
    const double bound = all / static_cast<double>(l.prompt + l.chosen + l.rejected);
    fmt::print("{:<20} {:>12.1f} {:>12.1f} {:>8.2f} {:>8.2f} {:>7.0f}%\n",
               fmt::format("{} / {} / {}", l.prompt, l.chosen, l.rejected), timings[0].median_ms(),
               timings[1].median_ms(), times, bound, 100 * times / bound);
    rows.push_back({{"prompt", l.prompt},
                    {"chosen", l.chosen},
                    {"rejected", l.rejected},
                    {"shared_ms", timings[0].samples_ms()},
                    {"apart_ms", timings[1].samples_ms()}});
  }
  return rows;
}

nlohmann::json growth(const Arguments& a) {
  struct Case {
    std::int64_t pairs;
    Lengths lengths;
    std::int64_t vocab_size;
  };
  nlohmann::json rows;
  fmt::print("\n{:>6} {:>6} {:>6} {:>8} {:>8} {:>10} {:>12}\n", "pairs", "P", "C, R", "V", "tokens",
             "ms", "tokens / s");
  for (const std::int64_t vocab : {12288, 49152, 151936}) {
    const auto model = make_model(vocab);
    std::vector<Case> cases{{4, {114, 44, 44}, vocab}};
    if (vocab == 49152) {
      for (const std::int64_t pairs : {1, 2, 8}) cases.push_back({pairs, {114, 44, 44}, vocab});
      for (const std::int64_t scale : {2, 4, 8}) {
        cases.push_back({1, {114 * scale, 44 * scale, 44 * scale}, vocab});
      }
    }
    for (const Case& c : cases) {
      const TokenBatch batch = make_pair_batch(random_pairs(c.pairs, c.lengths, vocab));
      const auto timings =
          time_interleaved({{.name = "step", .run = [&] { forward_backward(*model, batch); }}},
                           std::max(3, a.repeat / 3), /*warmup=*/1, [] {});
      const std::int64_t tokens = batch.packed->input_ids.size(0);
      const double ms = timings[0].median_ms();
      fmt::print("{:>6} {:>6} {:>6} {:>8} {:>8} {:>10.0f} {:>12.0f}\n", c.pairs, c.lengths.prompt,
                 c.lengths.chosen, vocab, tokens, ms, 1e3 * static_cast<double>(tokens) / ms);
      rows.push_back({{"pairs", c.pairs},
                      {"prompt", c.lengths.prompt},
                      {"chosen", c.lengths.chosen},
                      {"vocab", vocab},
                      {"tokens", tokens},
                      {"ms", timings[0].samples_ms()}});
    }
  }
  return rows;
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  using namespace prefopt::bench;
  Arguments a;
  CLI::App app{"Prefix sharing on against off, and the growth of a step"};
  app.add_option("--threads", a.threads)->capture_default_str();
  app.add_option("--repeat", a.repeat)->capture_default_str();
  app.add_option("--json", a.json)->type_name("FILE");
  CLI11_PARSE(app, argc, argv);
  // Large buffers come and go with each step: the heap keeps them instead of giving them back.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  at::set_num_threads(a.threads);
  torch::manual_seed(1);
  const nlohmann::json result{{"sharing", sharing(a)}, {"growth", growth(a)}};
  if (!a.json.empty()) std::ofstream(a.json) << result.dump(2) << '\n';
}
