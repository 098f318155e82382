// SPDX-License-Identifier: Apache-2.0
// Steps on rollouts, against the objective's own formula on log-probs of a bigram policy.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "prefopt/error.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/policy/reward_policy.h"
#include "prefopt/train/trainer.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using namespace testing_support;

TrainerOptions steady(double temperature = 1) {
  return {.optimizer = {.learning_rate = 0.1, .max_grad_norm = 0, .schedule = Schedule::kConstant},
          .temperature = temperature};
}

/// Rows of two prompts, ragged, one with tokens that the policy did not choose.
std::vector<TokenRow> rollouts() {
  std::vector<TokenRow> rows;
  const auto add = [&](std::int64_t group, std::vector<std::int64_t> completion,
                       std::vector<double> advantages, TokenMask mask = {}) {
    TokenRow row{.prompt = {group + 1, 0}, .chosen = std::move(completion), .rejected = {}};
    row.chosen_mask = std::move(mask);
    row.rollout.group = group;
    for (std::size_t t = 0; t < advantages.size(); ++t) {
      const auto at = static_cast<double>(t + rows.size());
      row.rollout.old_logps.push_back(-1.1 - 0.07 * at);
      row.rollout.ref_logps.push_back(-1.4 + 0.05 * at);
      row.rollout.sampler_logps.push_back(-1.2 - 0.06 * at);
    }
    row.rollout.advantages = std::move(advantages);
    rows.push_back(std::move(row));
  };
  add(0, {1, 2, 3}, {0.5, 0.5, 0.5});
  add(0, {4}, {-1});
  add(1, {2, 2, 4, 1}, {1.5, 1.5}, {1, 0, 0, 1});
  add(1, {3, 1}, {-0.3, -0.3});
  add(0, {2, 4}, {0.75, 0.75});
  return rows;
}

const std::vector<std::string>& objectives() {
  static const std::vector<std::string> all = {
      R"({"type": "grpo"})",
      R"({"type": "dapo"})",
      R"({"type": "gspo", "rule": {"low": 0.1, "high": 0.1}})",
      R"({"type": "rloo", "kl": {"coefficient": 0}})",
      R"({"type": "cispo"})",
      R"({"type": "sapo"})",
      R"({"type": "kimi"})",
      R"({"type": "policy_gradient", "rule": {"kind": "vespo"}, "level": "token",
          "aggregation": "group_token_mean"})",
      R"({"type": "loop", "level": "turn", "correction": {"kind": "truncate", "cap": 1.1}})",
      R"({"type": "grpo", "kl": {"estimator": "k2", "weight": "ratio", "coefficient": 0.3}})"};
  return all;
}

double tempered_logp(const BigramPolicy& policy, std::int64_t from, std::int64_t to,
                     double temperature) {
  double sum = 0;
  for (std::int64_t v = 0; v < kVocab; ++v) sum += std::exp(policy.logit(from, v) / temperature);
  return policy.logit(from, to) / temperature - std::log(sum);
}

/// The objective's loss of all rows at once, from the formula over Eigen arrays.
double loss_by_formula(const TokenObjective& objective, const BigramPolicy& policy,
                       const std::vector<TokenRow>& rows, double temperature,
                       const std::vector<double>& entropies = {},
                       const std::vector<double>& kls = {}) {
  std::vector<double> logps, old_logps, ref_logps, sampler_logps, advantages, completions, turns,
      lens, group_lens;
  std::map<std::int64_t, double> group_tokens;
  for (const TokenRow& row : rows) {
    group_tokens[row.rollout.group] += static_cast<double>(row.rollout.advantages.size());
  }
  BasicTokenArrays<Eigen::ArrayXd> in;
  for (const TokenRow& row : rows) {
    std::int64_t from = row.prompt.back();
    std::size_t next = 0;
    for (std::size_t t = 0; t < row.chosen.size(); ++t) {
      const bool counts = row.chosen_mask.empty() || row.chosen_mask[t] != 0;
      if (counts) {
        logps.push_back(tempered_logp(policy, from, row.chosen[t], temperature));
        old_logps.push_back(row.rollout.old_logps[next]);
        ref_logps.push_back(row.rollout.ref_logps[next]);
        sampler_logps.push_back(row.rollout.sampler_logps[next]);
        advantages.push_back(row.rollout.advantages[next++]);
        completions.push_back(static_cast<double>(in.completion_count));
        lens.push_back(static_cast<double>(row.rollout.advantages.size()));
        group_lens.push_back(group_tokens.at(row.rollout.group));
      }
      from = row.chosen[t];
    }
    ++in.completion_count;
  }
  const auto array = [](const std::vector<double>& x) {
    return Eigen::ArrayXd(
        Eigen::Map<const Eigen::ArrayXd>(x.data(), static_cast<Eigen::Index>(x.size())));
  };
  in.logps = array(logps);
  in.old_logps = array(old_logps);
  in.ref_logps = array(ref_logps);
  in.sampler_logps = array(sampler_logps);
  in.advantages = array(advantages);
  in.completions = in.turns = array(completions);
  in.turn_count = in.completion_count;
  in.lens = array(lens);
  in.entropies = array(entropies);
  in.exact_kls = array(kls);
  in.group_lens = array(group_lens);
  in.totals = {.tokens = static_cast<double>(logps.size()),
               .completions = static_cast<double>(rows.size()),
               .groups = static_cast<double>(group_tokens.size())};
  return objective.formula(in, objective.options().kl.coefficient).loss;
}

/// Rules whose coefficient takes no gradient have another slope than their value.
bool stops_a_coefficient(const std::string& config) {
  return config.find("cispo") != std::string::npos || config.find("vespo") != std::string::npos;
}

TEST_CASE("a step on rollouts has the loss and the gradient of its formula", "[train]") {
  const double temperature = GENERATE(1.0, 0.7);
  const auto rows = rollouts();
  for (const std::string& config : objectives()) {
    CAPTURE(config, temperature);
    const TokenObjective objective = make_token_objective(config);
    auto policy = std::make_shared<BigramPolicy>(3);
    Trainer trainer(policy, nullptr, objective, steady(temperature));
    const Metrics metrics = trainer.accumulate_gradients(rows);
    const double loss = loss_by_formula(objective, *policy, rows, temperature);
    CHECK(metric(metrics, "loss") == Approx(loss).epsilon(1e-10).margin(1e-13));
    // Central differences along some entries of the table.
    constexpr double kStep = 1e-6;
    const at::NoGradGuard no_grad;
    for (const std::int64_t place : {1, 7, 12, 13, 23}) {
      at::Tensor entry = policy->table().view({-1})[place];
      const double derivative = policy->table().grad().view({-1})[place].item<double>();
      entry += kStep;
      const double above = loss_by_formula(objective, *policy, rows, temperature);
      entry -= 2 * kStep;
      const double below = loss_by_formula(objective, *policy, rows, temperature);
      entry += kStep;
      if (stops_a_coefficient(config)) continue;
      CHECK(derivative == Approx((above - below) / (2 * kStep)).epsilon(1e-6).margin(1e-9));
    }
  }
}

TEST_CASE("a step on rollouts depends neither on the cut nor on the order of rows", "[train]") {
  for (const std::string& config : objectives()) {
    CAPTURE(config);
    std::vector<double> losses;
    std::vector<at::Tensor> gradients;
    for (const std::int64_t micro : {0, 1, 2, 3}) {
      auto rows = rollouts();
      if (micro % 2 == 1) std::rotate(rows.begin(), rows.begin() + 2, rows.end());
      auto policy = std::make_shared<BigramPolicy>(3);
      TrainerOptions options = steady();
      options.micro_batch_size = micro;
      Trainer trainer(policy, nullptr, make_token_objective(config), options);
      losses.push_back(metric(trainer.accumulate_gradients(rows), "loss"));
      gradients.push_back(policy->table().grad().clone());
    }
    const double scale = gradients[0].abs().max().item<double>();
    for (std::size_t i = 1; i < losses.size(); ++i) {
      CHECK(losses[i] == Approx(losses[0]).epsilon(1e-12).margin(1e-14));
      CHECK((gradients[i] - gradients[0]).abs().max().item<double>() <= 1e-12 * scale);
    }
  }
}

TEST_CASE("completions without an advantage count, and alone they change nothing", "[train]") {
  auto rows = rollouts();
  const auto silence = [](TokenRow& row) {
    std::fill(row.rollout.advantages.begin(), row.rollout.advantages.end(), 0);
  };
  silence(rows[0]);
  silence(rows[4]);
  const TokenObjective objective = make_token_objective(R"({"type": "dapo"})");
  auto policy = std::make_shared<BigramPolicy>(3);
  Trainer trainer(policy, nullptr, objective, steady());
  const Metrics metrics = trainer.step(rows);
  auto before = std::make_shared<BigramPolicy>(3);
  CHECK(metric(metrics, "loss") ==
        Approx(loss_by_formula(objective, *before, rows, 1)).epsilon(1e-12));

  for (TokenRow& row : rows) silence(row);
  const at::Tensor table = policy->table().detach().clone();
  const Metrics idle = trainer.step(rows);
  CHECK(metric(idle, "loss") == 0);
  CHECK(metric(idle, "grad_norm") == 0);
  CHECK(trainer.steps_done() == 2);
  CHECK(table.equal(policy->table()));  // AdamW's mean of the first step would have moved it
  // A KL in the loss teaches without an advantage.
  Trainer with_kl(policy, nullptr, make_token_objective(R"({"type": "grpo"})"), steady());
  CHECK(metric(with_kl.step(rows), "grad_norm") > 0);
}

TEST_CASE("an entropy bonus and the exact KL have the gradients of the distributions", "[train]") {
  const auto config = GENERATE(
      R"({"type": "dapo", "entropy_coefficient": 0.3})",
      R"({"type": "grpo", "kl": {"estimator": "exact", "coefficient": 0.4}})",
      R"({"type": "grpo", "kl": {"estimator": "exact", "coefficient": 0.4, "weight": "ratio"}})");
  CAPTURE(config);
  constexpr double kTemperature = 0.7;
  const auto rows = rollouts();
  const TokenObjective objective = make_token_objective(config);
  auto policy = std::make_shared<BigramPolicy>(3);
  auto other = std::make_shared<BigramPolicy>(4);
  Trainer trainer(policy, make_frozen_reference(other), objective, steady(kTemperature));
  trainer.accumulate_gradients(rows);

  // The loss from all probabilities of the bigrams, by the formula of the objective.
  const auto loss = [&] {
    std::vector<double> entropies, kls;
    for (const TokenRow& row : rows) {
      std::int64_t from = row.prompt.back();
      for (std::size_t t = 0; t < row.chosen.size(); ++t) {
        if (row.chosen_mask.empty() || row.chosen_mask[t] != 0) {
          double entropy = 0;
          double kl = 0;
          for (std::int64_t v = 0; v < kVocab; ++v) {
            const double logp = tempered_logp(*policy, from, v, kTemperature);
            entropy -= std::exp(logp) * logp;
            kl += std::exp(logp) * (logp - tempered_logp(*other, from, v, kTemperature));
          }
          entropies.push_back(entropy);
          kls.push_back(kl);
        }
        from = row.chosen[t];
      }
    }
    return loss_by_formula(objective, *policy, rows, kTemperature, entropies, kls);
  };
  constexpr double kStep = 1e-6;
  const at::NoGradGuard no_grad;
  for (const std::int64_t place : {1, 7, 12, 13, 23}) {
    at::Tensor entry = policy->table().view({-1})[place];
    entry += kStep;
    const double above = loss();
    entry -= 2 * kStep;
    const double below = loss();
    entry += kStep;
    CHECK(policy->table().grad().view({-1})[place].item<double>() ==
          Approx((above - below) / (2 * kStep)).epsilon(1e-6).margin(1e-9));
  }
}

/// Values of states by the token before.
class TableValues final : public RewardPolicy {
 public:
  TableValues() : table_(torch::zeros({kVocab}, torch::kDouble).requires_grad_(true)) {}

  at::Tensor token_values(const TokenBatch& batch) override {
    const at::Tensor values = table_.index_select(0, batch.input_ids.reshape(-1))
                                  .reshape(batch.input_ids.sizes())
                                  .slice(1, 0, -1)
                                  .reshape(-1);
    return values.index_select(0,
                               batch.completion_mask.slice(1, 1).reshape(-1).nonzero().squeeze(1));
  }
  at::Tensor rewards(const std::vector<TokenSequence>&) override { return {}; }
  using RewardPolicy::rewards;
  std::int64_t vocab_size() const override { return kVocab; }
  std::vector<NamedParameter> named_parameters() const override { return {{"table", table_}}; }

  const at::Tensor& table() const { return table_; }

 private:
  at::Tensor table_;
};

TEST_CASE("a value model learns returns by its own optimizer", "[train]") {
  auto rows = rollouts();
  for (TokenRow& row : rows) {
    for (std::size_t t = 0; t < row.rollout.advantages.size(); ++t) {
      row.rollout.old_values.push_back(0);
      row.rollout.returns.push_back(row.rollout.group == 0 ? 2 : -1);
    }
    row.rollout.old_logps.clear();
    row.rollout.sampler_logps.clear();
  }
  const TokenObjective objective = make_token_objective(
      R"({"type": "ppo", "value_loss": {"coefficient": 1, "clip": 0}, "kl": {"coefficient": 0}})");
  auto policy = std::make_shared<BigramPolicy>(3);
  auto values = std::make_shared<TableValues>();
  TrainerOptions options = steady();
  options.value_model = values;
  options.value_optimizer = {
      .learning_rate = 0.05, .max_grad_norm = 0, .schedule = Schedule::kConstant};
  options.value_pretrain_steps = 2;
  Trainer trainer(policy, nullptr, objective, options);
  const at::Tensor before = policy->table().detach().clone();
  // Mean over the 10 tokens of (V - R)^2 / 2 at V = 0.
  CHECK(metric(trainer.step(rows), "loss/value") == Approx((6 * 4 + 4 * 1) / 20.0).epsilon(1e-12));
  // AdamW's first step is its learning rate. Token 0 is the prompt's last, of both groups.
  CHECK(values->table()[1].item<double>() == Approx(0.05).epsilon(1e-6));
  trainer.step(rows);
  CHECK(before.equal(policy->table()));
  trainer.step(rows);
  CHECK_FALSE(before.equal(policy->table()));

  // State and its return.
  auto other = std::make_shared<TableValues>();
  auto other_policy = std::make_shared<BigramPolicy>(3);
  {
    const at::NoGradGuard no_grad;
    other->table().copy_(values->table());
    other_policy->table().copy_(policy->table());
    other_policy->bias().copy_(policy->bias());
  }
  options.value_model = other;
  Trainer resumed(other_policy, nullptr, objective, options);
  resumed.load_state(trainer.state());
  trainer.step(rows);
  resumed.step(rows);
  CHECK(other->table().equal(values->table()));
  CHECK(other_policy->table().equal(policy->table()));
}

TEST_CASE("rows that an objective on tokens cannot take are refused", "[train]") {
  auto policy = std::make_shared<BigramPolicy>(3);
  const auto refused = [&](const char* config, const std::function<void(TokenRow&)>& change,
                           const std::string& text) {
    auto rows = rollouts();
    change(rows[1]);
    Trainer trainer(policy, nullptr, make_token_objective(config), steady());
    CHECK_THROWS_TEXT(trainer.step(rows), ShapeError, text);
  };
  refused(R"({"type": "dapo"})", [](TokenRow& row) { row.rollout.advantages.push_back(1); },
          "dapo: expected advantages of the 1 tokens that count in row 1, got 2");
  refused(R"({"type": "dapo"})", [](TokenRow& row) { row.rollout.old_logps.clear(); },
          "dapo: expected old_logps of the 1 tokens that count in row 1, got 0");
  refused(R"({"type": "grpo"})", [](TokenRow& row) { row.rollout.ref_logps.clear(); },
          "grpo: expected ref_logps of the 1 tokens that count in row 1, got 0");
  refused(R"({"type": "dapo"})", [](TokenRow& row) { row.rejected = {1}; },
          "dapo: expected rows of one completion without weights of tokens, got others in row 1");
  refused(R"({"type": "dapo"})",
          [](TokenRow& row) {
            row.rollout.turns = {0, 1};
          },
          "dapo: expected turns of the 1 tokens that count in row 1, got 2");
  CHECK_THROWS_TEXT(Trainer(policy, nullptr, make_token_objective(R"({"type": "ppo"})"), steady()),
                    ConfigError, "ppo: expected a value model for its value_loss, got null");
  CHECK_THROWS_TEXT(
      Trainer(policy, nullptr, make_token_objective(R"({"type": "dapo"})"), steady(0)), ConfigError,
      "dapo: expected a temperature above 0, got 0");
}

}  // namespace
}  // namespace prefopt
