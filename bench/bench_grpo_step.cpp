// SPDX-License-Identifier: Apache-2.0

// Updates of GRPO on given rollouts: reward to updated weights, or from drawing them. One JSON line
// an update, as bench/peers/trl_grpo_step.py prints them for TRL; or what a prompt shared by its
// completions saves in the layers.

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <malloc.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/objectives/rollout_step.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/train/trainer.h"
#include "support/measure.h"

namespace prefopt::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Tokens = std::vector<std::int64_t>;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double peak_rss_gib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / (1 << 20);
}

struct Arguments {
  std::string model, rollouts, matmul_precision = "highest";
  double beta = 0;
  std::int64_t threads = 2, head_mib = 64, micro_tokens = 0;
  int repeat = 5;
  bool body = false, draw = false;
};

Arguments parse(int argc, char** argv) {
  Arguments a;
  CLI::App app{"Times GRPO updates of a Llama-family model"};
  app.add_option("model", a.model, "Hugging Face folder or GGUF file")->required();
  app.add_option("rollouts", a.rollouts, "JSONL of groups, see compare_grpo.py")->required();
  app.add_option("--beta", a.beta, "of the KL to the reference; 0: no reference");
  app.add_option("--head-mib", a.head_mib);
  app.add_option("--micro-tokens", a.micro_tokens, "tokens a micro-batch; 0: no limit");
  app.add_option("--threads", a.threads);
  app.add_option("--matmul-precision", a.matmul_precision, "as machine.matmul_precision")
      ->check(CLI::IsMember({"highest", "high", "medium"}));
  app.add_option("--repeat", a.repeat, "of --body");
  app.add_flag("--body", a.body, "the layers with the prompt once and in each sequence instead");
  app.add_flag("--draw", a.draw,
               "draw the completions, each as long as the longest that is given, within the time");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  return a;
}

/// The completions of one prompt.
struct Group {
  Tokens prompt;
  std::vector<Tokens> completions;
  std::vector<double> rewards;
};

std::vector<Group> read_groups(const std::string& path) {
  std::ifstream file(path);
  std::vector<Group> groups;
  for (std::string text; std::getline(file, text);) {
    const auto json = nlohmann::json::parse(text);
    groups.push_back({.prompt = json.at("prompt").get<Tokens>(),
                      .completions = json.at("completions").get<std::vector<Tokens>>(),
                      .rewards = json.at("rewards").get<std::vector<double>>()});
  }
  if (groups.empty()) throw DataError(path + ": expected groups of rollouts, got none");
  return groups;
}

/// Puts completions that the policy draws in place of the given ones. No end token: all have the
/// length of the longest.
void draw_completions(Policy& policy, std::int64_t seed, Group& group) {
  std::int64_t longest = 0;
  for (const Tokens& completion : group.completions) {
    longest = std::max(longest, std::ssize(completion));
  }
  const std::vector<Tokens> prompts(group.completions.size(), group.prompt);
  group.completions = sample(policy, prompts, {.max_new_tokens = longest, .seed = seed});
}

/// Rows of a group, with the advantages that its rewards give.
std::vector<TokenRow> rows_of(const Group& group, const TokenObjective& objective) {
  RolloutStep step;
  for (const Tokens& completion : group.completions) step.lens.push_back(std::ssize(completion));
  step.groups.assign(group.completions.size(), 0);
  const std::vector<std::int64_t> starts = step.starts();
  step.acted = Eigen::ArrayXd::Ones(starts.back());
  step.rewards = Eigen::Map<const Eigen::ArrayXd>(group.rewards.data(), std::ssize(group.rewards));
  const Eigen::ArrayXd advantages = objective.advantages(step).advantages;
  std::vector<TokenRow> rows;
  for (std::size_t i = 0; i < group.completions.size(); ++i) {
    TokenRow row{.prompt = group.prompt, .chosen = group.completions[i], .rejected = {}};
    row.rollout.advantages.assign(advantages.data() + starts[i], advantages.data() + starts[i + 1]);
    rows.push_back(std::move(row));
  }
  return rows;
}

void forward_backward(Decoder& model, const TokenBatch& batch) {
  model.forward_packed(*batch.packed).sum().backward();
  for (const auto& parameter : model.named_parameters()) parameter.value.mutable_grad().reset();
}

/// Forward and backward pass of the layers with the prompt once, and with as many prompts as
/// completions, of which no two are equal.
void time_body(const Arguments& a, const Group& group, Decoder& model) {
  std::vector<Tokens> prompts(group.completions.size(), group.prompt);
  std::vector<TokenSequence> shared, apart;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    prompts[i].front() = static_cast<std::int64_t>(i);
    shared.push_back({group.prompt, group.completions[i]});
    apart.push_back({prompts[i], group.completions[i]});
  }
  const TokenBatch once = make_batch(shared), each = make_batch(apart);
  const auto timings =
      time_interleaved({{.name = "shared", .run = [&] { forward_backward(model, once); }},
                        {.name = "apart", .run = [&] { forward_backward(model, each); }}},
                       a.repeat, /*warmup=*/1, [] {});
  fmt::print("{}\n", nlohmann::json{{"shared_tokens", once.packed->input_ids.size(0)},
                                    {"apart_tokens", each.packed->input_ids.size(0)},
                                    {"shared_seconds", timings[0].median_ms() / 1e3},
                                    {"apart_seconds", timings[1].median_ms() / 1e3}}
                         .dump());
}

void run(const Arguments& a) {
  at::set_num_threads(static_cast<int>(a.threads));
  at::globalContext().setFloat32MatmulPrecision(a.matmul_precision);
  std::vector<Group> groups = read_groups(a.rollouts);
  // The reference stays where it is mapped; trained weights get their own memory.
  const auto base = Decoder::load(a.model, "float32");
  const auto policy = base->frozen_decoder();
  base->set_requires_grad(false);
  policy->set_requires_grad(true);
  if (a.body) return time_body(a, groups.front(), *policy);

  // TRL's name of its loss, with its defaults.
  const TokenObjective objective = make_token_objective(
      nlohmann::json{{"trainer", "GRPOTrainer"}, {"loss_type", "dapo"}, {"beta", a.beta}}.dump());
  Trainer trainer(policy, a.beta > 0 ? make_frozen_reference(base) : nullptr, objective,
                  {.optimizer = {.learning_rate = 1e-6, .schedule = Schedule::kConstant},
                   .micro_batch_tokens = a.micro_tokens,
                   .head_budget_bytes = a.head_mib << 20});
  for (std::size_t update = 0; update < groups.size(); ++update) {
    const auto start = Clock::now();
    if (a.draw) draw_completions(*policy, static_cast<std::int64_t>(update), groups[update]);
    const double drawing = seconds_since(start);
    const Metrics metrics = trainer.step(rows_of(groups[update], objective));
    fmt::print("{}\n", nlohmann::json{{"step", update + 1},
                                      {"seconds", seconds_since(start)},
                                      {"drawing", drawing},
                                      {"peak_rss_gib", peak_rss_gib()},
                                      {"loss", metric(metrics, "loss")},
                                      {"grad_norm", metric(metrics, "grad_norm")}}
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
    fmt::print(stderr, "bench_grpo_step: {}\n", error.what());
    return 1;
  }
}
