// SPDX-License-Identifier: Apache-2.0

// Sampling of a real model (target S5). One JSON line a round, as bench/peers/generate.py prints
// them for transformers.

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/sampling.h"

namespace prefopt::bench {
namespace {

struct Arguments {
  std::string model, prompts, dtype = "float32", out;
  SamplingOptions sampling = {.temperature = 0};
  std::int64_t threads = 2, rounds = 3, copies = 1;
  bool with_logps = false;
  bool own_memory = false;
};

Arguments parse(int argc, char** argv) {
  Arguments a;
  CLI::App app{"Times sampling of a Llama-family model"};
  app.add_option("model", a.model, "Hugging Face folder")->required();
  app.add_option("prompts", a.prompts, "JSON list of token lists")->required();
  app.add_option("--tokens", a.sampling.max_new_tokens, "new tokens of each prompt");
  app.add_option("--temperature", a.sampling.temperature, "0: greedy");
  app.add_option("--top-k", a.sampling.top_k);
  app.add_option("--top-p", a.sampling.top_p);
  app.add_option("--eos", a.sampling.eos_id, "end token; -1: none");
  app.add_option("--copies", a.copies, "completions of each prompt; fewer prompts are used then");
  app.add_option("--dtype", a.dtype, "of the weights");
  app.add_option("--threads", a.threads);
  app.add_option("--rounds", a.rounds);
  app.add_flag("--logps", a.with_logps, "also the log-probs of what was sampled");
  app.add_flag("--own-memory", a.own_memory, "weights in large pages, not where they are mapped");
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

void run(const Arguments& a) {
  at::set_num_threads(static_cast<int>(a.threads));
  const auto prompts = read_prompts(a.prompts, a.copies);
  auto policy = Decoder::load(a.model, a.dtype);
  if (a.own_memory) policy = policy->frozen_decoder();
  Samples samples;
  for (std::int64_t round = 0; round < a.rounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    samples = sample_as_asked(*policy, prompts, a);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::int64_t tokens = 0;
    for (const auto& completion : samples.completions) tokens += std::ssize(completion);
    fmt::print("{}\n", nlohmann::json{{"seconds", seconds},
                                      {"tokens", tokens},
                                      {"tokens_per_second", static_cast<double>(tokens) / seconds}}
                           .dump());
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
