// SPDX-License-Identifier: Apache-2.0

// An advantage and a rule of your own: written, checked, registered, and used by name in an
// objective on tokens. Here ranks in place of rewards, and the quadratic penalty of SPO
// (2401.16025) in place of a clip.

#include <fmt/format.h>
#include <torch/types.h>

#include <Eigen/Core>
#include <cmath>
#include <string>

#include "prefopt/objectives/token_objective.h"
#include "prefopt/testing/objective_checks.h"

using namespace prefopt;

namespace {

struct SpoOptions {
  double epsilon = 0.2;

  void fields(FieldVisitor& v) {
    v.real({"epsilon", "distance of the ratio from 1 at which the gradient is 0"}, epsilon,
           Range::above(0));
  }
};

// f = -(ratio A - |A| (ratio - 1)^2 / (2 epsilon)), on tensors and on Eigen arrays.
class SpoRule : public RuleBase<SpoRule, SpoOptions> {
 public:
  using RuleBase::RuleBase;

  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    const T size = math::relu(in.advantages) + math::relu(T(-in.advantages));
    const T gap = in.ratios - 1;
    return {.losses = size * math::square(gap) / (2 * options_.epsilon) - in.ratios * in.advantages,
            .by_log_ratio = in.ratio_slopes * (size * gap / options_.epsilon - in.advantages)};
  }
  static RuleProperties properties() { return {.policy_gradient = true}; }
  static PieceInfo info() {
    return {.kind = "spo",
            .formula = "-(ratio A - |A| (ratio - 1)^2 / (2 epsilon))",
            .source = "arXiv:2401.16025"};
  }
};

// (completions of the prompt below - those above) / (k - 1): from -1 to 1, whatever the rewards'
// scale. Completions without a reward are in no group of rated_groups().
class RankAdvantage : public AdvantageBase<RankAdvantage> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const {
    Eigen::ArrayXd each = Eigen::ArrayXd::Zero(step.completions());
    for (const auto& group : step.rated_groups()) {
      if (group.size() < 2) continue;
      for (const auto i : group) {
        for (const auto j : group) {
          if (step.rewards[i] == step.rewards[j]) continue;
          each[i] += step.rewards[i] > step.rewards[j] ? 1 : -1;
        }
        each[i] /= static_cast<double>(group.size() - 1);
      }
    }
    return step.spread(each);
  }
  static AdvantageNeeds needs() { return {.groups = true}; }
  static AdvantageProperties properties() { return {.shift_free = true}; }
  static PieceInfo info() { return {.kind = "rank", .formula = "(below - above) / (k - 1)"}; }
};

}  // namespace

int main() {
  register_rule<SpoRule>();
  register_advantage<RankAdvantage>();

  // Derivatives, cut steps, unrated completions, … and the properties that they declare.
  std::string faults = testing::check_rule(SpoRule({.epsilon = 0.3})).text();
  faults += testing::check_advantage(RankAdvantage()).text();

  const TokenObjective objective = make_token_objective(
      R"({"type": "policy_gradient", "advantage": {"kind": "rank"}, "rule": {"kind": "spo"},
          "aggregation": "sequence_token_mean"})");

  // Two answers to one prompt, of two tokens and of one.
  RolloutStep step;
  step.lens = {2, 1};
  step.groups = {0, 0};
  step.acted = Eigen::ArrayXd::Ones(3);
  step.rewards = Eigen::ArrayXd::LinSpaced(2, 5, 3);
  const Eigen::ArrayXd advantages = objective.advantages(step).advantages;  // 1, 1, -1

  TokenArrays in;
  in.logps = torch::tensor({-1.0, -2.0, -0.5}, torch::kDouble).requires_grad_();
  in.old_logps = in.logps.detach() - std::log(1.1);
  in.advantages = torch::tensor({advantages[0], advantages[1], advantages[2]}, torch::kDouble);
  in.completions = torch::tensor({0.0, 0.0, 1.0}, torch::kDouble);
  in.lens = torch::tensor({2.0, 2.0, 1.0}, torch::kDouble);
  in.completion_count = 2;
  in.totals = {.tokens = 3, .completions = 2, .groups = 1};
  const ObjectiveOutput out = objective.forward(in);
  out.loss.backward();

  // At ratio 1.1 each token has 0.1^2 / 0.4 = 0.025, less the ratio times A, which cancels.
  const bool value_is_right = std::abs(out.loss.item<double>() - 0.025) < 1e-12;
  const bool gradient_arrives = torch::equal(in.logps.grad(), out.grad_logps);
  fmt::print("loss {:.6f}, expected 0.025000, gradient {}\n{}\n", out.loss.item<double>(),
             gradient_arrives ? "arrives" : "LOST", faults.empty() ? "all checks hold" : faults);
  return value_is_right && gradient_arrives && faults.empty() ? 0 : 1;
}
