// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/testing/objective_checks.h"
#include "support/catch.h"
#include "support/close.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using nlohmann::json;
using testing_support::check_close;
using ArraysXd = BasicTokenArrays<Eigen::ArrayXd>;
using OutputXd = BasicObjectiveOutput<Eigen::ArrayXd>;

/// A direction in all inputs that a loss moves, the same numbers everywhere.
struct Direction {
  Eigen::ArrayXd logps, entropies, exact_kls, values;

  explicit Direction(Eigen::Index size) {
    double angle = 0;
    for (Eigen::ArrayXd* x : {&logps, &entropies, &exact_kls, &values}) {
      x->resize(size);
      for (double& number : *x) number = std::sin(angle += 1.7);
    }
  }

  double along(const OutputXd& out) const {
    const auto part = [](const Eigen::ArrayXd& gradient, const Eigen::ArrayXd& x) {
      return gradient.size() == 0 ? 0 : (gradient * x).sum();
    };
    return part(out.grad_logps, logps) + part(out.grad_entropies, entropies) +
           part(out.grad_exact_kls, exact_kls) + part(out.grad_values, values);
  }

  ArraysXd moved(const ArraysXd& in, double step) const {
    ArraysXd out = in;
    out.logps += step * logps;
    out.entropies += step * entropies;
    out.exact_kls += step * exact_kls;
    out.values += step * values;
    return out;
  }
};

/// Difference of the loss along the direction. Where the rule stops its ratio, the older policies
/// move along in its term, so that the ratio stays.
double difference(const TokenObjective& objective, const ArraysXd& in, const Direction& direction) {
  constexpr double kStep = 1e-5;
  const double beta = objective.options().kl.coefficient;
  const bool holds_ratio = objective.rule().properties().stops_ratio;
  const auto value = [&](double step) {
    const ArraysXd moved = direction.moved(in, step);
    const OutputXd out = objective.formula(moved, beta);
    if (!holds_ratio) return out.loss;
    ArraysXd held = moved;
    held.old_logps += step * direction.logps;
    held.sampler_logps += step * direction.logps;
    double sum = objective.formula(held, beta).terms.front().value;
    for (std::size_t i = 1; i < out.terms.size(); ++i) sum += out.terms[i].value;
    return sum;
  };
  return (value(kStep) - value(-kStep)) / (2 * kStep);
}

void check_same(const OutputXd& a, const ObjectiveOutput& b) {
  check_close(b.loss.item<double>(), a.loss, 1e-12, 1e-13);
  const auto same = [](const Eigen::ArrayXd& x, const at::Tensor& y) {
    CHECK((x.size() > 0) == y.defined());
    if (!y.defined() || x.size() == 0) return;
    const Eigen::Map<const Eigen::ArrayXd> numbers(y.data_ptr<double>(), y.numel());
    CHECK((numbers - x).abs().maxCoeff() <= 1e-12);
  };
  same(a.grad_logps, b.grad_logps);
  same(a.grad_entropies, b.grad_entropies);
  same(a.grad_exact_kls, b.grad_exact_kls);
  same(a.grad_values, b.grad_values);
}

TEST_CASE("finite differences of every rule, level, aggregation, KL and correction",
          "[objectives]") {
  const ArraysXd in = testing::random_token_arrays(11, 0.4);
  const TokenArrays tensors = testing::as_tensors(in);
  const Direction direction(in.logps.size());
  const char* rules[] = {R"({"kind": "none"})",
                         R"({"kind": "ppo", "delta": 1.4, "dual": 1.3})",
                         R"({"kind": "cispo", "min": 0.8, "max": 1.2})",
                         R"({"kind": "sapo"})",
                         R"({"kind": "vespo"})",
                         R"({"kind": "regress", "tau": 0.5})"};
  std::vector<KlOptions> kls{{}};
  for (const auto estimator :
       {KlEstimator::kK1, KlEstimator::kK2, KlEstimator::kK3, KlEstimator::kExact}) {
    for (const auto weight : {KlWeight::kNone, KlWeight::kRatio}) {
      kls.push_back({.estimator = estimator, .weight = weight, .coefficient = 0.3});
    }
  }
  std::vector<CorrectionOptions> corrections{{}};
  for (const auto kind : {CorrectionKind::kTruncate, CorrectionKind::kMask,
                          CorrectionKind::kSequenceTruncate, CorrectionKind::kSequenceMask}) {
    corrections.push_back({.kind = kind, .cap = 1.1});
  }
  int count = 0;
  for (const char* rule : rules) {
    for (const auto level : {RatioLevel::kToken, RatioLevel::kSequenceMean,
                             RatioLevel::kSequenceSum, RatioLevel::kTurn}) {
      if (make_rule(rule).of_completions() && level != RatioLevel::kToken &&
          level != RatioLevel::kSequenceSum) {
        continue;
      }
      for (int by = 0; by < 5; ++by) {
        for (const KlOptions& kl : kls) {
          for (const CorrectionOptions& correction : corrections) {
            TokenObjectiveOptions options;
            options.rule = rule;
            options.advantage = R"({"kind": "gae"})";
            options.level = level;
            options.aggregation = static_cast<Aggregation>(by);
            options.max_completion_length = 8;
            options.kl = kl;
            options.correction = correction;
            // Every third has the remaining options as well.
            const bool is_full = count++ % 3 == 0;
            if (is_full) {
              options.entropy_coefficient = 0.2;
              options.value_loss = {.coefficient = 0.7, .clip = 0.2};
              options.off_policy_drop = 0.05;
            }
            const TokenObjective objective(options);
            const OutputXd out = objective.formula(in, kl.coefficient);
            const double expected = difference(objective, in, direction);
            const double got = direction.along(out);
            if (std::abs(got - expected) > 1e-7 * (1 + std::abs(expected))) {
              INFO(objective.config());
              CHECK(got == expected);
            }
            if (count % 5 == 0) check_same(out, objective.formula(tensors, kl.coefficient));
          }
        }
      }
    }
  }
  CHECK(count == 22 * 5 * 9 * 5);
}

TEST_CASE("every preset passes the kit", "[objectives]") {
  CHECK(objective_presets().size() == 16);
  for (const ObjectivePreset& preset : objective_presets()) {
    const TokenObjective objective = make_token_objective(R"({"type": ")" + preset.name + "\"}");
    CHECK(testing::check_objective(objective).text() == "");
    CHECK(make_token_objective(objective.config()).config() == objective.config());
    CHECK(preset.source != "");
    CHECK(preset.when_to_use != "");
  }
  CHECK(testing::check_objective(make_token_objective(R"({"type": "grpo", "level": "turn",
    "aggregation": "group_token_mean", "entropy_coefficient": 0.1, "off_policy_drop": 0.1,
    "kl": {"weight": "ratio"}, "correction": {"kind": "sequence_truncate", "cap": 1.1}})"))
            .text() == "");
}

TEST_CASE("at ratio 1 every rule has the gradient of REINFORCE", "[objectives]") {
  ArraysXd in = testing::random_token_arrays(2);
  in.old_logps = in.logps;
  const Eigen::ArrayXd expected = -in.advantages / in.totals.tokens;
  for (const RuleEntry& entry : registered_rules()) {
    CAPTURE(entry.info.kind);
    const TokenObjective objective = make_token_objective(
        json{{"type", "policy_gradient"}, {"rule", {{"kind", entry.info.kind}}}}.dump());
    const OutputXd out = objective.formula(in, 0);
    CHECK((out.grad_logps - expected).abs().maxCoeff() < 1e-15);
    if (entry.info.kind == "none" || entry.info.kind == "ppo") {
      check_close(out.loss, -(in.advantages).mean(), 1e-14);
    }
  }
}

TEST_CASE("huge ratios are limited and have no gradient", "[objectives]") {
  ArraysXd in = testing::random_token_arrays(2);
  in.logps = in.old_logps + 1000;
  const TokenObjective objective = make_token_objective(
      R"({"type": "policy_gradient", "kl": {"estimator": "k2", "weight": "ratio",
          "coefficient": 1}})");
  const OutputXd out = objective.formula(in, 1);
  CHECK(std::isfinite(out.loss));
  CHECK((out.grad_logps == 0).all());
  check_close(out.terms[0].value, -std::exp(20.0) * in.advantages.mean(), 1e-12);
  check_close(out.terms[1].value, std::exp(20.0) * 200, 1e-12);
  in.logps = in.old_logps - 1000;
  CHECK(std::isfinite(objective.formula(in, 1).loss));
}

TEST_CASE("a log-prob that is NaN shows in the loss", "[objectives]") {
  ArraysXd in = testing::random_token_arrays(2);
  in.logps[3] = std::numeric_limits<double>::quiet_NaN();
  for (const RuleEntry& entry : registered_rules()) {
    CAPTURE(entry.info.kind);
    const TokenObjective objective = make_token_objective(
        json{{"type", "policy_gradient"}, {"rule", {{"kind", entry.info.kind}}}}.dump());
    CHECK(std::isnan(objective.formula(in, 0).loss));
    CHECK(std::isnan(objective.formula(testing::as_tensors(in), 0).loss.item<double>()));
  }
}

TEST_CASE("the weight of the KL has the ratio of the level, whatever the rule's is",
          "[objectives]") {
  // In TRL, 'vespo' weighs the policy by the completion and the KL by the token.
  const ArraysXd in = testing::random_token_arrays(2);
  const char* kl = R"("kl": {"estimator": "k3", "weight": "ratio", "coefficient": 0.5}})";
  const auto term = [&](const std::string& rule) {
    const TokenObjective objective = make_token_objective(
        R"({"type": "policy_gradient", "rule": {"kind": ")" + rule + "\"}, " + kl);
    return objective.formula(in, 0.5).terms.at(1).value;
  };
  CHECK(term("vespo") == term("ppo"));
}

TEST_CASE("advantages are of the step, however it is cut, and the KL in them", "[objectives]") {
  RolloutStep step = testing::random_rollouts(4);
  const auto of = [&](const char* config) { return make_token_objective(config).advantages(step); };
  SECTION("off a completion's reward") {
    const Eigen::ArrayXd got = of(R"({"type": "policy_gradient", "advantage": {"kind": "none"},
               "kl": {"estimator": "k1", "place": "reward", "coefficient": 0.5}})")
                                   .advantages;
    const auto starts = step.starts();
    for (std::size_t i = 0; i < step.lens.size(); ++i) {
      double expected = step.rewards[static_cast<Eigen::Index>(i)];
      for (auto t = starts[i]; t < starts[i + 1]; ++t) {
        if (step.acted[t] == 1) expected -= 0.5 * (step.old_logps[t] - step.ref_logps[t]);
      }
      for (auto t = starts[i]; t < starts[i + 1]; ++t) {
        check_close(got[t], step.acted[t] * expected, 1e-13);
      }
    }
  }
  SECTION("off each token's advantage") {
    const Eigen::ArrayXd got = of(R"({"type": "remax", "advantage": {"clip": 0.1}})").advantages;
    const Eigen::ArrayXd plain =
        step.spread((step.rewards - step.greedy_rewards).max(-0.1).min(0.1));
    const Eigen::ArrayXd expected = step.acted * (plain - 0.1 * (step.old_logps - step.ref_logps));
    CHECK((got - expected).abs().maxCoeff() < 1e-14);
  }
  SECTION("missing log-probs") {
    step.old_logps = Eigen::ArrayXd();
    CHECK_THROWS_TEXT(of(R"({"type": "rloo"})"), ShapeError,
                      "rloo: expected old_logps of the rollouts, got none");
    step.ref_logps = Eigen::ArrayXd();
    CHECK_THROWS_TEXT(of(R"({"type": "rloo"})"), ShapeError,
                      "rloo: expected ref_logps of the rollouts, got none");
    CHECK_NOTHROW(of(R"({"type": "rloo", "kl": {"coefficient": 0}})"));
  }
}

TEST_CASE("a part without tokens has loss 0", "[objectives]") {
  for (const char* config : {R"({"type": "grpo"})", R"({"type": "gspo"})", R"({"type": "rloo"})"}) {
    const TokenObjective objective = make_token_objective(config);
    TokenArrays in;
    in.logps = torch::zeros({0}, torch::kDouble).requires_grad_();
    const ObjectiveOutput out = objective.forward(in);
    CHECK(out.loss.item<double>() == 0);
    CHECK(objective.formula(ArraysXd{}, 0).loss == 0);
  }
}

TEST_CASE("arrays of other shapes are refused", "[objectives]") {
  const TokenObjective grpo = make_token_objective(R"({"type": "grpo"})");
  const TokenArrays good = testing::as_tensors(testing::random_token_arrays(2));
  const auto size = std::to_string(good.logps.size(0));
  TokenArrays in = good;
  SECTION("missing reference") {
    in.ref_logps = at::Tensor();
    CHECK_THROWS_TEXT(grpo.forward(in), ShapeError,
                      "grpo: expected ref_logps [" + size + "], got none");
  }
  SECTION("two dimensions") {
    in.advantages = in.advantages.unsqueeze(1);
    CHECK_THROWS_TEXT(grpo.forward(in), ShapeError,
                      "grpo: expected advantages [" + size + "], got [" + size + ", 1]");
    in.logps = in.logps.unsqueeze(0);
    CHECK_THROWS_TEXT(grpo.forward(in), ShapeError,
                      "grpo: expected logps [tokens], got [1, " + size + "]");
  }
  SECTION("no totals") {
    in.totals = {};
    const auto completions = std::to_string(in.completion_count);
    CHECK_THROWS_TEXT(grpo.forward(in), ShapeError,
                      "grpo: expected totals.completions of the whole step, at least the " +
                          completions + " given, got 0");
    CHECK_THROWS_TEXT(
        make_token_objective(R"({"type": "dapo"})").forward(in), ShapeError,
        "dapo: expected totals.tokens of the whole step, at least the " + size + " given, got 0");
  }
  SECTION("totals of a part, on arrays as on tensors") {
    ArraysXd arrays = testing::random_token_arrays(2);
    arrays.totals.completions -= 1;
    const auto completions = std::to_string(arrays.completion_count);
    const auto one_less = std::to_string(arrays.completion_count - 1);
    CHECK_THROWS_TEXT(grpo.formula(arrays, 0), ShapeError,
                      "grpo: expected totals.completions of the whole step, at least the " +
                          completions + " given, got " + one_less);
    arrays.totals.completions += 1;
    CHECK_NOTHROW(grpo.formula(arrays, 0));
  }
  SECTION("a completion that is not there") {
    ArraysXd arrays = testing::random_token_arrays(2);
    arrays.completions[0] = 99;
    const TokenObjective gspo = make_token_objective(R"({"type": "gspo"})");
    CHECK_THROWS_AS(gspo.formula(arrays, 0), ShapeError);
  }
}

TEST_CASE("contradictions of an objective's options", "[objectives]") {
  const std::pair<const char*, const char*> cases[] = {
      {R"("kl": {"estimator": "k1", "coefficient": 1})",
       "policy_gradient: expected a KL that regularizes, got kl.estimator 'k1' in the loss: its "
       "gradient is 0 in expectation, so that it does nothing; use k2 or k3 there, weight 'ratio', "
       "or place 'reward'"},
      {R"("aggregation": "fixed")",
       "policy_gradient: expected max_completion_length above 0 for aggregation 'fixed', got 0"},
      {R"("kl": {"estimator": "exact", "place": "reward", "coefficient": 1})",
       "policy_gradient: expected kl.place 'loss' for the exact KL, which has its own gradient, "
       "got "
       "another place"},
      {R"("advantage": {"kind": "given"}, "kl": {"estimator": "k1", "place": "reward",
          "coefficient": 1})",
       "policy_gradient: expected kl.place 'loss' or 'advantage' for advantage 'given', which "
       "reads "
       "no rewards, got 'reward'"},
      {R"("kl": {"place": "reward", "weight": "ratio", "coefficient": 1})",
       "policy_gradient: expected kl.weight 'none' for a KL that is not in the loss, got 'ratio'"},
      {R"("kl": {"target": 6})",
       "policy_gradient: expected kl.target 0 without a kl.coefficient to adapt, got another "
       "target"},
      {R"("value_loss": {"coefficient": 1})",
       "policy_gradient: expected value_loss.coefficient 0 for an advantage without values, got "
       "another coefficient"},
      {R"("dpo_reward": {"coefficient": 1})",
       "policy_gradient: expected dpo_reward.coefficient 0 for an advantage without rewards of "
       "tokens (gae, to_go), got another coefficient"},
      {R"("rule": {"kind": "vespo"}, "level": "turn")",
       "policy_gradient: expected level 'sequence_sum' for rule 'vespo', whose ratio is that of "
       "the "
       "completion, got another level"},
      {R"("correction": {"low": 0.5})",
       "policy_gradient: expected correction.low 0 without a mask, got 0.5"},
      {R"("correction": {"cap": 2})",
       "policy_gradient: expected correction.cap 0 without a kind of correction, got 2"},
      {R"("correction": {"kind": "mask", "low": 6})",
       "policy_gradient: expected correction.low of at most the cap 5, got 6"},
      {R"("levl": "token")",
       "policy_gradient: expected a known option, got 'levl'; did you mean 'level'?"},
      {R"("kl": {"estimater": "k3"})",
       "policy_gradient.kl: expected a known option, got 'estimater'; did you mean 'estimator'?"}};
  for (const auto& [rest, text] : cases) {
    const std::string config = R"({"type": "policy_gradient", )" + std::string(rest) + "}";
    CHECK_THROWS_TEXT(make_token_objective(config), ConfigError, text);
  }
}

TEST_CASE("names of losses and of objectives do not mix", "[objectives]") {
  CHECK_THROWS_TEXT(make_token_objective(R"({"type": "dpo"})"), ConfigError,
                    "loss: expected an objective on tokens, which takes rollouts, got 'dpo', a "
                    "loss on rows");
  CHECK_THROWS_TEXT(make_token_objective(R"({"type": "grpoo"})"), ConfigError,
                    "loss: expected an objective on tokens, got 'grpoo'; did you mean 'grpo'?");
  CHECK_THROWS_TEXT(make_token_objective(R"([])"), ConfigError,
                    "loss: expected an object with a key 'type', got []");
  CHECK_THROWS_TEXT(make_token_objective(R"({"beta": 1})"), ConfigError,
                    "loss: expected a key 'type' that names an objective, got {\"beta\":1}");
  for (const ObjectivePreset& preset : objective_presets()) {
    CHECK_THROWS_TEXT(make_loss(R"({"type": ")" + preset.name + "\"}"), ConfigError,
                      "loss: expected a loss on rows, got '" + preset.name +
                          "', an objective on tokens, which takes rollouts");
  }
  for (const char* yes :
       {R"({"type": "grpo"})", R"({"loss_type": "dapo"})", R"({"trainer": "RLOOConfig"})",
        R"({"type": "policy_gradient", "rule": {"kind": "ppo"}})",
        R"({"type": "policy_gradient", "kl": {}})"}) {
    CHECK(is_token_objective(yes));
  }
  for (const char* no : {R"({"type": "dpo"})", R"({"type": "policy_gradient", "tau": 0.1})",
                         R"({"beta": 0.1})", R"({"loss_type": "sigmoid"})",
                         R"({"loss_type": ["grpo"]})", R"([])", R"({"trainer": "DPOTrainer"})"}) {
    CHECK_FALSE(is_token_objective(no));
  }
}

TEST_CASE("options in front of a preset's replace them one by one", "[objectives]") {
  const auto options = [](const char* config) { return make_token_objective(config).options(); };
  const auto grpo =
      options(R"({"type": "grpo", "rule": {"high": 0.28}, "kl": {"coefficient": 0}})");
  CHECK(json::parse(grpo.rule) ==
        json{{"kind", "ppo"}, {"low", 0.2}, {"high", 0.28}, {"delta", 0.0}, {"dual", 0.0}});
  CHECK(grpo.kl.coefficient == 0);
  const auto other = options(R"({"type": "grpo", "rule": {"kind": "sapo"}})");
  CHECK(json::parse(other.rule)["kind"] == "sapo");
}

}  // namespace
}  // namespace prefopt
