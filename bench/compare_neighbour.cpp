// SPDX-License-Identifier: Apache-2.0

// Loops, decoding and DPO steps while another program keeps a processor busy (target N1): quiet and
// busy, on LibTorch's threads and on the pool's, in turn. The other program is a shell's loop;
// nothing is pinned. One JSON line has medians, ratios, and whether all results are the
// same to the last bit.

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill is POSIX
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/loop_threads.h"
#include "core/parallel.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/train/trainer.h"
#include "support/measure.h"

namespace prefopt::bench {
namespace {

using Tokens = std::vector<std::int64_t>;
using Clock = std::chrono::steady_clock;

struct Arguments {
  std::string model;
  std::int64_t sequences = 64, prompt_tokens = 16, new_tokens = 24;
  std::int64_t pairs = 4, row_tokens = 128, lora_rank = 0;
  std::int64_t threads = 2, rounds = 3, neighbours = 1;
};

Arguments parse(int argc, char** argv) {
  Arguments a;
  CLI::App app{"Times decoding and DPO steps next to a program that keeps a processor busy"};
  app.add_option("model", a.model, "Hugging Face folder or GGUF file")->required();
  app.add_option("--sequences", a.sequences, "that are decoded together");
  app.add_option("--prompt-tokens", a.prompt_tokens);
  app.add_option("--new-tokens", a.new_tokens);
  app.add_option("--pairs", a.pairs, "of a DPO step");
  app.add_option("--row-tokens", a.row_tokens, "of prompt, chosen and rejected, each");
  app.add_option("--lora", a.lora_rank, "rank of an adapter; 0: all weights are trained");
  app.add_option("--threads", a.threads);
  app.add_option("--rounds", a.rounds)->check(CLI::PositiveNumber);
  app.add_option("--neighbours", a.neighbours, "busy loops");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  return a;
}

/// Another program that computes without end, for as long as this lives. Spawned and not forked: a
/// fork's memory is this program's until one of them writes, and a step writes gigabytes.
class Neighbour {
 public:
  Neighbour() {
    std::string shell = "sh", flag = "-c", loop = "while :; do :; done";
    char* const arguments[] = {shell.data(), flag.data(), loop.data(), nullptr};
    if (::posix_spawnp(&child_, "sh", nullptr, nullptr, arguments, environ) != 0) {
      throw Error("expected a shell that can be started, got none");
    }
  }
  Neighbour(Neighbour&& other) noexcept : child_(std::exchange(other.child_, -1)) {}
  Neighbour& operator=(Neighbour&&) = delete;
  ~Neighbour() {
    if (child_ <= 0) return;
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
  }

 private:
  pid_t child_ = -1;
};

Tokens tokens_from(std::int64_t seed, std::int64_t count, std::int64_t vocab_size) {
  Tokens tokens;
  for (std::int64_t i = 0; i < count; ++i) {
    tokens.push_back((seed * 7919 + i * 104729 + 17) % vocab_size);
  }
  return tokens;
}

/// A piece of work; returns numbers that must always be the same.
using Work = std::function<std::vector<double>()>;

/// Loops that wait for one another, of half a millisecond on two threads like those of decoding.
std::vector<double> loops() {
  constexpr int kLoops = 1000, kTerms = 10'000;
  std::vector<double> sums(40, 0);
  for (int loop = 0; loop < kLoops; ++loop) {
    parallel_for(0, std::ssize(sums), 1, [&](std::int64_t first, std::int64_t last) {
      for (; first < last; ++first) {
        double& sum = sums[static_cast<std::size_t>(first)];
        for (int i = 0; i < kTerms; ++i) sum = 0.999999 * sum + 1e-3;
      }
    });
  }
  return sums;
}

Work decoding(Decoder& policy, const Arguments& a) {
  std::vector<Tokens> prompts;
  for (std::int64_t i = 0; i < a.sequences; ++i) {
    prompts.push_back(tokens_from(i, a.prompt_tokens, policy.options().vocab_size));
  }
  const SamplingOptions options{.max_new_tokens = a.new_tokens, .temperature = 0};
  return [&policy, prompts, options] {
    std::vector<double> result;
    for (const auto& logps : sample_with_logps(policy, prompts, options).token_logps) {
      result.insert(result.end(), logps.begin(), logps.end());
    }
    return result;
  };
}

/// A step at learning rate 0, so that each one has the same weights to begin with.
Work dpo_step(const std::shared_ptr<Decoder>& policy, const Arguments& a) {
  const auto base = a.lora_rank > 0 ? policy->without_adapter() : policy->frozen_decoder();
  std::vector<TokenRow> rows;
  for (std::int64_t i = 0; i < a.pairs; ++i) {
    const auto part = [&](std::int64_t seed) {
      return tokens_from(seed, a.row_tokens, policy->options().vocab_size);
    };
    rows.push_back({.prompt = part(3 * i), .chosen = part(3 * i + 1), .rejected = part(3 * i + 2)});
  }
  TrainerOptions options;
  options.optimizer.learning_rate = 0;
  options.optimizer.schedule = Schedule::kConstant;
  options.head_budget_bytes = std::int64_t{64} << 20;
  auto trainer = std::make_shared<Trainer>(policy, make_frozen_reference(base),
                                           make_loss(R"({"type": "dpo"})"), options);
  return [trainer, rows]() -> std::vector<double> {
    const Metrics metrics = trainer->step(rows);
    return {metric(metrics, "loss"), metric(metrics, "grad_norm")};
  };
}

struct State {
  std::string name;
  LoopThreads threads;
  bool is_busy;
};

const std::vector<State> kStates = {{"libtorch_quiet", LoopThreads::kLibTorch, false},
                                    {"pool_quiet", LoopThreads::kPool, false},
                                    {"libtorch_busy", LoopThreads::kLibTorch, true},
                                    {"pool_busy", LoopThreads::kPool, true}};

nlohmann::json compare(const std::string& name, const Work& work, const Arguments& a) {
  const std::vector<double> expected = work();  // memory and caches are warm
  bool is_same = true;
  std::map<std::string, Timing> timings;
  for (std::int64_t round = 0; round < a.rounds; ++round) {
    for (const State& state : kStates) {
      set_loop_threads(state.threads);
      std::vector<Neighbour> neighbours(static_cast<std::size_t>(state.is_busy ? a.neighbours : 0));
      const auto start = Clock::now();
      is_same = work() == expected && is_same;
      timings[state.name].add(
          std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    }
  }
  set_loop_threads(LoopThreads::kPool);
  nlohmann::json result{{"work", name}, {"same_results", is_same}};
  for (const auto& [state, timing] : timings) result[state + "_ms"] = timing.median_ms();
  const auto ratio = [&](const char* over, const char* under) {
    return timings[over].median_ms() / timings[under].median_ms();
  };
  result["libtorch_ratio"] = ratio("libtorch_busy", "libtorch_quiet");
  result["pool_ratio"] = ratio("pool_busy", "pool_quiet");
  result["limit"] = 1.6;
  result["quiet_ratio"] = ratio("pool_quiet", "libtorch_quiet");
  return result;
}

void print(const nlohmann::json& line) {
  fmt::print("{}\n", line.dump());
  std::fflush(stdout);
}

void run(const Arguments& a) {
  at::set_num_threads(static_cast<int>(a.threads));
  print(compare("loops", loops, a));
  const std::shared_ptr<Decoder> policy = Decoder::load(a.model, "float32");
  print(compare("decoding", decoding(*policy, a), a));
  if (a.lora_rank > 0) {
    policy->add_adapter({.r = a.lora_rank, .lora_alpha = 2.0 * static_cast<double>(a.lora_rank)});
  } else {
    policy->set_requires_grad(true);
  }
  print(compare("dpo_step", dpo_step(policy, a), a));
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  try {
    prefopt::bench::run(prefopt::bench::parse(argc, argv));
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "compare_neighbour: {}\n", error.what());
    return 1;
  }
}
