// SPDX-License-Identifier: Apache-2.0

// Sampling of a real model (target S5). One JSON line a round, as bench/peers/generate.py prints
// them for transformers.

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sum.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/drafted_sampling.h"
#include "prefopt/policy/sampling.h"

namespace prefopt::bench {
namespace {

struct Arguments {
  std::string model, prompts, dtype = "float32", out;
  SamplingOptions sampling = {.temperature = 0};
  std::int64_t threads = 2, rounds = 3, copies = 1, draft_tokens = 0;
  bool with_logps = false, limits = false, after_first = false;
  bool own_memory = false;
};

Arguments parse(int argc, char** argv) {
  Arguments a;
  CLI::App app{"Times sampling of a Llama-family model"};
  app.add_option("model", a.model, "Hugging Face folder or GGUF file")->required();
  app.add_option("prompts", a.prompts, "JSON list of token lists")->required();
  app.add_option("--tokens", a.sampling.max_new_tokens, "new tokens of each prompt");
  app.add_option("--temperature", a.sampling.temperature, "0: greedy");
  app.add_option("--top-k", a.sampling.top_k);
  app.add_option("--top-p", a.sampling.top_p);
  app.add_option("--eos", a.sampling.eos_id, "end token; -1: none");
  app.add_option("--copies", a.copies, "completions of each prompt; fewer prompts are used then");
  app.add_option("--dtype", a.dtype, "of the weights, or quantized: in the file's blocks");
  app.add_option("--threads", a.threads);
  app.add_option("--rounds", a.rounds);
  app.add_flag("--logps", a.with_logps, "also the log-probs of what was sampled");
  app.add_flag("--own-memory", a.own_memory, "weights in large pages, not where they are mapped");
  app.add_flag("--after-first", a.after_first, "less the time of prompts and first tokens");
  app.add_option("--draft-tokens", a.draft_tokens, "greedy: each round also with drafts");
  app.add_flag("--limits", a.limits, "only what the machine reads and multiplies a second");
  app.add_option("--out", a.out, "JSON file for the completions of the last round");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  return a;
}

/// As many as the file has, the first of them `copies` times each.
std::vector<std::vector<std::int64_t>> read_prompts(const std::string& path, std::int64_t copies) {
  std::ifstream file(path);
  const auto json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_array()) throw DataError(path + ": expected a JSON list of token lists");
  const auto all = json.get<std::vector<std::vector<std::int64_t>>>();
  std::vector<std::vector<std::int64_t>> prompts;
  for (std::size_t i = 0; i < all.size(); ++i) {
    prompts.push_back(all[i / static_cast<std::size_t>(copies)]);
  }
  return prompts;
}

Samples sample_as_asked(Policy& policy, const std::vector<std::vector<std::int64_t>>& prompts,
                        const Arguments& a) {
  if (a.with_logps) return sample_with_logps(policy, prompts, a.sampling);
  return {.completions = sample(policy, prompts, a.sampling), .token_logps = {}};
}

template <class Call>
double seconds_of(const Call& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Returns the fastest of some calls, in seconds.
template <class Call>
double fastest(const Call& call) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 5; ++i) best = std::min(best, seconds_of(call));
  return best;
}

/// Samples the same with drafts; throws where the completions differ.
void add_drafts(Policy& policy, const std::vector<std::vector<std::int64_t>>& prompts,
                const Arguments& a, const Samples& plain, nlohmann::json& line) {
  DraftCounts counts;
  std::vector<std::vector<std::int64_t>> completions;
  const double seconds = seconds_of([&] {
    completions = sample_with_drafts(policy, prompts, a.sampling, a.draft_tokens, &counts);
  });
  if (completions != plain.completions) throw Error("drafts changed the completions");
  line["draft_seconds"] = seconds;
  line["draft_gain"] = line["seconds"].get<double>() / seconds;
  line["drafted"] = counts.drafted;
  line["accepted"] = counts.accepted;
  line["passes"] = counts.passes;
}

void print_limits() {
  constexpr std::int64_t kSide = 2048, kNumbers = std::int64_t{1} << 27;
  const at::Tensor a = at::ones({kSide, kSide}), b = at::ones({kSide, kSide});
  at::Tensor c = at::empty({kSide, kSide});
  const double multiplying = fastest([&] { at::mm_out(c, a, b); });
  const at::Tensor numbers = at::ones({kNumbers});
  const double reading = fastest([&] { numbers.sum(); });
  fmt::print("{}\n", nlohmann::json{{"read_gb_s", 4e-9 * kNumbers / reading},
                                    {"gflop_s", 2e-9 * kSide * kSide * kSide / multiplying}}
                         .dump());
}

void run(const Arguments& a) {
  at::set_num_threads(static_cast<int>(a.threads));
  if (a.limits) return print_limits();
  const auto prompts = read_prompts(a.prompts, a.copies);
  auto policy = Decoder::load(a.model, a.dtype);
  if (a.own_memory) policy = policy->frozen_decoder();
  Samples samples;
  for (std::int64_t round = 0; round < a.rounds; ++round) {
    double seconds = seconds_of([&] { samples = sample_as_asked(*policy, prompts, a); });
    std::int64_t tokens = 0;
    for (const auto& completion : samples.completions) tokens += std::ssize(completion);
    if (a.after_first) {
      Arguments first = a;
      first.sampling.max_new_tokens = 1;
      seconds -= seconds_of([&] { sample_as_asked(*policy, prompts, first); });
      tokens -= std::ssize(prompts);
    }
    nlohmann::json line{{"seconds", seconds},
                        {"tokens", tokens},
                        {"tokens_per_second", static_cast<double>(tokens) / seconds}};
    if (a.draft_tokens > 0) add_drafts(*policy, prompts, a, samples, line);
    fmt::print("{}\n", line.dump());
    std::fflush(stdout);
  }
  if (!a.out.empty()) std::ofstream(a.out) << nlohmann::json(samples.completions).dump();
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  try {
    prefopt::bench::run(prefopt::bench::parse(argc, argv));
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_sampling: {}\n", error.what());
    return 1;
  }
}
