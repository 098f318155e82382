// SPDX-License-Identifier: Apache-2.0

// Whole iterations of online DPO: completions of some prompts are drawn, rated and trained on. One
// JSON line an iteration, as bench/peers/trl_online_step.py prints them for TRL.

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <malloc.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/online/online_rows.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/trainer.h"

namespace prefopt::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double>(end - start).count();
}

double peak_rss_gib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / (1 << 20);
}

struct Arguments {
  std::string model, prompts;
  std::int64_t iterations = 4, prompts_a_step = 4, samples = 2, tokens = 64, threads = 2;
  std::int64_t micro_tokens = 0, head_mib = 64;
};

Arguments parse(int argc, char** argv) {
  Arguments a;
  CLI::App app{"Times iterations of online DPO of a Llama-family model"};
  app.add_option("model", a.model, "Hugging Face folder or GGUF file")->required();
  app.add_option("prompts", a.prompts, "JSON list of token lists")->required();
  app.add_option("--iterations", a.iterations);
  app.add_option("--prompts-a-step", a.prompts_a_step);
  app.add_option("--samples", a.samples, "completions of each prompt");
  app.add_option("--tokens", a.tokens, "new tokens of each completion");
  app.add_option("--micro-tokens", a.micro_tokens, "tokens a micro-batch; 0: no limit");
  app.add_option("--head-mib", a.head_mib);
  app.add_option("--threads", a.threads);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  return a;
}

std::vector<OnlinePrompt> read_prompts(const std::string& path, const Tokenizer& tokenizer) {
  std::ifstream file(path);
  const auto json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_array()) throw DataError(path + ": expected a JSON list of token lists");
  std::vector<OnlinePrompt> prompts;
  for (auto& ids : json.get<std::vector<std::vector<std::int64_t>>>()) {
    std::string text = tokenizer.decode(ids);
    prompts.push_back({.ids = std::move(ids), .text = std::move(text)});
  }
  return prompts;
}

/// The length of the text, as in trl_online_step.py.
class LengthReward final : public RewardPreference {
 public:
  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override {
    std::vector<double> lengths;
    for (const Rollout* rollout : rollouts) {
      lengths.push_back(static_cast<double>(rollout->text.size()));
    }
    return lengths;
  }
};

/// When the phases of an iteration began. Rating overlaps sampling; what is left of it afterwards
/// is its time.
struct Phases {
  Clock::time_point sampling, rating, training;

  void enter(std::string_view phase, std::int64_t done) {
    if (phase == "sampling" && done == 0) sampling = Clock::now();
    if (phase == "rating" && done == 0) rating = Clock::now();
    if (phase == "training") training = Clock::now();
  }
};

void run(const Arguments& a) {
  at::set_num_threads(static_cast<int>(a.threads));
  const std::shared_ptr<const Tokenizer> tokenizer = make_tokenizer(tokenizer_of_model(a.model));
  // The reference stays where it is mapped; trained weights get their own memory.
  const auto base = Decoder::load(a.model, "float32");
  const auto policy = base->frozen_decoder();
  base->set_requires_grad(false);
  policy->set_requires_grad(true);

  const Loss loss = make_loss(R"({"type": "dpo", "beta": 0.1})");
  Phases phases;
  OnlineParts parts;
  parts.tokenizer = tokenizer;
  parts.prompts = read_prompts(a.prompts, *tokenizer);
  // No end token: all completions have their full length.
  parts.sources = {{.name = "policy", .n = a.samples, .sampling = {.max_new_tokens = a.tokens}}};
  parts.feedback = std::make_shared<LengthReward>();
  parts.selection = make_selection(R"({"type": "best_worst"})", {"policy"});
  parts.needs = loss.requirements();
  parts.progress = [&](std::string_view phase, std::int64_t done, std::int64_t /*total*/) {
    phases.enter(phase, done);
  };
  OnlineRows rows(std::move(parts),
                  {.rounds = {.rounds = a.iterations, .prompts = a.prompts_a_step, .steps = 1}},
                  *policy);
  Trainer trainer(policy, make_frozen_reference(base), loss,
                  {.optimizer = {.learning_rate = 1e-6},
                   .total_steps = a.iterations,
                   .micro_batch_tokens = a.micro_tokens,
                   .head_budget_bytes = a.head_mib << 20});
  for (std::int64_t iteration = 1; iteration <= a.iterations; ++iteration) {
    const auto start = Clock::now();
    const StepRows step = rows.next(*policy);
    const Metrics metrics = trainer.step(step.rows);
    rows.finish_step();
    const auto end = Clock::now();
    fmt::print("{}\n", nlohmann::json{{"step", iteration},
                                      {"seconds", seconds_between(start, end)},
                                      {"sampling", seconds_between(phases.sampling, phases.rating)},
                                      {"rating", seconds_between(phases.rating, phases.training)},
                                      {"training", seconds_between(phases.training, end)},
                                      {"pairs", step.rows.size()},
                                      {"peak_rss_gib", peak_rss_gib()},
                                      {"loss", metric(metrics, "loss")}}
                           .dump());
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  try {
    // Large buffers come and go with each step: the heap keeps them instead of giving them back.
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    prefopt::bench::run(prefopt::bench::parse(argc, argv));
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_online: {}\n", error.what());
    return 1;
  }
}
