// SPDX-License-Identifier: Apache-2.0

// Objectives on the tokens of rollouts, over several ranks.

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "prefopt/decoder/value_head.h"
#include "prefopt/objectives/token_objective.h"
#include "support/rank_jobs.h"

namespace prefopt::over_ranks {
namespace {

/// Values of states by the token before.
class TokenValues final : public RewardPolicy {
 public:
  TokenValues() : table_(torch::zeros({31}, torch::kDouble).requires_grad_(true)) {}

  at::Tensor token_values(const TokenBatch& batch) override {
    const at::Tensor before = batch.input_ids.slice(1, 0, -1).reshape(-1);
    const at::Tensor counts = batch.completion_mask.slice(1, 1).reshape(-1).nonzero().squeeze(1);
    return table_.index_select(0, before.index_select(0, counts));
  }
  at::Tensor rewards(const std::vector<TokenSequence>&) override { return {}; }
  using RewardPolicy::rewards;
  std::int64_t vocab_size() const override { return 31; }
  std::vector<NamedParameter> named_parameters() const override { return {{"table", table_}}; }

 private:
  at::Tensor table_;
};

/// Groups of uneven sizes; some rows teach nothing where a rule asks for an advantage alone.
std::vector<TokenRow> rollout_rows(int step) {
  std::mt19937_64 rng(static_cast<std::uint64_t>(step) + 40);
  std::vector<TokenRow> rows;
  const auto number = [&] { return static_cast<double>(rng() % 1000) / 1000; };
  for (const std::int64_t group : {0, 0, 0, 1, 1, 2, 2, 2, 3}) {
    TokenRow row{.prompt = {group + 1, 2, group + 3}, .chosen = {}, .rejected = {}};
    const auto length = 1 + rng() % 7;
    const double advantage = rows.size() % 4 == 3 ? 0 : number() - 0.4;
    for (std::uint64_t t = 0; t < length; ++t) {
      row.chosen.push_back(1 + static_cast<std::int64_t>(rng() % 28));
      row.rollout.old_logps.push_back(-3 - number());
      row.rollout.ref_logps.push_back(-3 - number());
      row.rollout.sampler_logps.push_back(-3 - number());
      row.rollout.old_values.push_back(number());
      row.rollout.returns.push_back(number());
      row.rollout.advantages.push_back(advantage);
    }
    row.rollout.group = group;
    rows.push_back(std::move(row));
  }
  return rows;
}

Job rollout_job(at::ScalarType dtype, const std::string& objective) {
  const auto policy = decoder(dtype);
  return {policy, nullptr, [=](const TrainerOptions& options) {
            return std::make_unique<Trainer>(policy, nullptr, make_token_objective(objective),
                                             options);
          }};
}

TEST_CASE("ranks: objectives on rollouts train as in one process", "[train]") {
  const std::vector<std::string> objectives = {
      R"({"type": "grpo"})",
      R"({"type": "dapo"})",
      R"({"type": "gspo", "rule": {"low": 0.1, "high": 0.1}})",
      R"({"type": "cispo"})",
      R"({"type": "policy_gradient", "rule": {"kind": "vespo"}, "level": "token",
          "aggregation": "group_token_mean"})",
      R"({"type": "loop", "level": "turn", "correction": {"kind": "truncate", "cap": 1.1}})"};
  struct Case {
    int size;
    Sharding sharding;
  };
  for (const auto [size, sharding] :
       {Case{2, Sharding::kNone}, Case{4, Sharding::kNone}, Case{3, Sharding::kWeights}}) {
    const ThreadRanks ranks(size, {.sharding = sharding});
    for (const std::string& objective : objectives) {
      CAPTURE(size, objective);
      check_against_one_process(
          ranks, size, [&] { return rollout_job(torch::kDouble, objective); }, steady(), 1e-12, 2,
          rollout_rows);
    }
  }
}

TEST_CASE("ranks: imitated rows, and steps that teach nothing", "[train]") {
  const ThreadRanks ranks(3);
  const auto make_job = [] { return rollout_job(torch::kDouble, R"({"type": "dapo"})"); };
  TrainerOptions options = steady();
  options.imitation_coefficient = 0.5;
  check_against_one_process(ranks, 3, make_job, options, 1e-12, 2, [](int step) {
    auto rows = rollout_rows(step);
    for (const TokenRow& pair : random_rows(3, 5)) {
      rows.push_back({.prompt = pair.prompt, .chosen = pair.chosen, .rejected = {}});
    }
    return rows;
  });
  check_against_one_process(ranks, 3, make_job, steady(), 1e-12, 3, [](int step) {
    auto rows = rollout_rows(step);
    if (step != 1) return rows;
    for (TokenRow& row : rows) {
      std::fill(row.rollout.advantages.begin(), row.rollout.advantages.end(), 0);
    }
    return rows;
  });
}

TEST_CASE("ranks: a value model learns by its own optimizer", "[train]") {
  for (const Sharding sharding : {Sharding::kNone, Sharding::kOptimizer}) {
    const ThreadRanks ranks(2, {.sharding = sharding});
    TrainerOptions options = steady();
    options.value_optimizer = {
        .learning_rate = 0.05, .max_grad_norm = 0.1, .schedule = Schedule::kConstant};
    options.value_pretrain_steps = 1;
    const auto make_job = [] {
      Job job = rollout_job(torch::kDouble, R"({"type": "ppo", "value_loss": {"coefficient": 1,
                                                "clip": 0}, "kl": {"coefficient": 0}})");
      job.values = std::make_shared<TokenValues>();
      return job;
    };
    check_against_one_process(ranks, 2, make_job, options, 1e-12, 3, rollout_rows);
  }
}

TEST_CASE("ranks: a value head reads the policy's slices of weights", "[train]") {
  const ThreadRanks ranks(2, {.sharding = Sharding::kWeights});
  TrainerOptions options = steady();
  options.value_optimizer = {.learning_rate = 0.05, .schedule = Schedule::kConstant};
  check_against_one_process(
      ranks, 2,
      [] {
        const auto policy = decoder(torch::kDouble);
        return Job{policy, nullptr,
                   [=](const TrainerOptions& given) {
                     return std::make_unique<Trainer>(
                         policy, nullptr,
                         make_token_objective(R"({"type": "ppo", "kl": {"coefficient": 0}})"),
                         given);
                   },
                   std::make_shared<ValueHead>(policy)};
      },
      options, 1e-12, 3, rollout_rows);
}

}  // namespace
}  // namespace prefopt::over_ranks
