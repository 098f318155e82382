// SPDX-License-Identifier: Apache-2.0

// Rules and advantages with one fault each, and what the checks say of them.

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "prefopt/objectives/advantage.h"
#include "prefopt/objectives/advantages/given.h"
#include "prefopt/objectives/token_rule.h"
#include "prefopt/testing/objective_checks.h"
#include "support/catch.h"

namespace prefopt {
namespace {

using testing::LossReport;

/// Whether a report has failures of exactly these checks.
bool fails(const LossReport& report, std::vector<std::string> checks) {
  std::vector<std::string> found;
  for (const testing::Failure& failure : report.failures) found.push_back(failure.check);
  for (std::vector<std::string>* names : {&found, &checks}) {
    std::sort(names->begin(), names->end());
    names->erase(std::unique(names->begin(), names->end()), names->end());
  }
  return found == checks;
}

#define CHECK_FAILS(report, ...)                                \
  do {                                                          \
    const LossReport found = (report);                          \
    INFO(found.text());                                         \
    CHECK(fails(found, std::vector<std::string>{__VA_ARGS__})); \
  } while (false)

// A sound rule, of ratio and log-prob at once: f = −ρ A − c log π.
class MixedRule : public RuleBase<MixedRule> {
 public:
  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    return {.losses = -in.ratios * in.advantages - 0.1 * in.logps,
            .by_log_ratio = -in.ratio_slopes * in.advantages,
            .by_logp = math::constant(in.logps, -0.1)};
  }
  static PieceInfo info() { return {.kind = "mine", .formula = "-ratio A - 0.1 lp"}; }
};

class WrongSlopeRule : public RuleBase<WrongSlopeRule> {
 public:
  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    return {.losses = -in.ratios * in.advantages, .by_log_ratio = in.ratio_slopes * in.advantages};
  }
  static PieceInfo info() { return {.kind = "mine"}; }
};

// The derivative beyond the limit of the exponential, where the loss is constant.
class SlopeBeyondLimit : public RuleBase<SlopeBeyondLimit> {
 public:
  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    return {.losses = -in.ratios * in.advantages, .by_log_ratio = -in.ratios * in.advantages};
  }
  static PieceInfo info() { return {.kind = "mine"}; }
};

class UndeclaredStop : public RuleBase<UndeclaredStop> {
 public:
  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    const T slopes = -in.ratios * in.advantages;
    return {.losses = slopes * in.logps, .by_logp = slopes};
  }
  static PieceInfo info() { return {.kind = "mine"}; }
};

class DeclaredStop : public UndeclaredStop {
 public:
  static RuleProperties properties() { return {.policy_gradient = true, .stops_ratio = true}; }
};

class FalseStop : public WrongSlopeRule {
 public:
  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    return {.losses = -in.ratios * in.advantages, .by_log_ratio = -in.ratio_slopes * in.advantages};
  }
  static RuleProperties properties() { return {.stops_ratio = true}; }
};

class FalseAnchor : public RuleBase<FalseAnchor> {
 public:
  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    return {.losses = -2 * in.ratios * in.advantages,
            .by_log_ratio = -2 * in.ratio_slopes * in.advantages};
  }
  static RuleProperties properties() { return {.policy_gradient = true}; }
  static PieceInfo info() { return {.kind = "mine"}; }
};

class TensorDiffers : public RuleBase<TensorDiffers> {
 public:
  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    const double factor = std::is_same_v<T, at::Tensor> ? 1.5 : 1;
    return {.losses = -factor * in.ratios * in.advantages,
            .by_log_ratio = -factor * in.ratio_slopes * in.advantages};
  }
  static PieceInfo info() { return {.kind = "mine"}; }
};

class Normalizing : public RuleBase<Normalizing> {
 public:
  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    const auto count = static_cast<double>(math::length(in.logps));
    return {.losses = -in.ratios * in.advantages / count,
            .by_log_ratio = -in.ratio_slopes * in.advantages / count};
  }
  static PieceInfo info() { return {.kind = "mine"}; }
};

class Overflowing : public RuleBase<Overflowing> {
 public:
  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    const T slopes = -in.advantages / in.logps / math::square(in.log_ratios);
    return {.losses = slopes * in.logps, .by_logp = 0 * slopes};
  }
  static RuleProperties properties() { return {.stops_ratio = true}; }
  static PieceInfo info() { return {.kind = "mine"}; }
};

TEST_CASE("check_rule finds what is wrong, and nothing else", "[testing]") {
  using testing::check_rule;
  CHECK(check_rule(MixedRule()).text() == "");
  CHECK(check_rule(DeclaredStop()).text() == "");
  CHECK_FAILS(check_rule(WrongSlopeRule()), "difference");
  CHECK_FAILS(check_rule(SlopeBeyondLimit()), "difference");
  CHECK_FAILS(check_rule(UndeclaredStop()), "difference");
  CHECK_FAILS(check_rule(FalseStop()), "stops_ratio", "difference");
  CHECK_FAILS(check_rule(FalseAnchor()), "policy_gradient");
  CHECK_FAILS(check_rule(TensorDiffers()), "agreement");
  CHECK_FAILS(check_rule(Normalizing()), "token", "cut");
  const LossReport infinite = check_rule(Overflowing());
  CHECK(std::any_of(infinite.failures.begin(), infinite.failures.end(),
                    [](const testing::Failure& failure) { return failure.check == "finite"; }));

  // The sentence names place, both numbers, rule and seed.
  const std::string text = check_rule(WrongSlopeRule(), {.seed = 4}).failures.front().text;
  CHECK(text.starts_with("by_log_ratio at log-ratio "));
  CHECK(text.find(" by finite differences, got ") != std::string::npos);
  CHECK(text.ends_with(" (rule 'mine', seed 4)"));
}

/// Base of advantages of this file: the reward, changed by `Derived`.
template <class Derived>
class RewardAdvantage : public AdvantageBase<Derived> {
 public:
  Eigen::ArrayXd of(const RolloutStep& step) const {
    return static_cast<const Derived*>(this)->changed(step, step.spread(step.rewards));
  }
  static PieceInfo info() { return {.kind = "mine"}; }
};

class SoundAdvantage : public RewardAdvantage<SoundAdvantage> {
 public:
  static Eigen::ArrayXd changed(const RolloutStep&, const Eigen::ArrayXd& rewards) {
    return 2 * rewards;
  }
  static AdvantageProperties properties() { return {.scales = true}; }
};

// Tokens that the policy did not choose count.
class ReadsOthers : public RewardAdvantage<ReadsOthers> {
 public:
  static Eigen::ArrayXd changed(const RolloutStep& step, const Eigen::ArrayXd& rewards) {
    return rewards - step.token_rewards.sum();
  }
  static AdvantageNeeds needs() { return {.per_token = true}; }
};

class Undeclared : public RewardAdvantage<Undeclared> {
 public:
  static Eigen::ArrayXd changed(const RolloutStep& step, const Eigen::ArrayXd& rewards) {
    return rewards - (step.acted > 0).select(step.values, 0);
  }
};

// NaN reaches the mean of all.
class SpoiledMean : public RewardAdvantage<SpoiledMean> {
 public:
  static Eigen::ArrayXd changed(const RolloutStep& step, const Eigen::ArrayXd& rewards) {
    return rewards - step.rewards.mean();
  }
};

class FirstIsBaseline : public RewardAdvantage<FirstIsBaseline> {
 public:
  static Eigen::ArrayXd changed(const RolloutStep& step, const Eigen::ArrayXd& rewards) {
    return rewards - step.rewards[0];
  }
};

class FalseShift : public RewardAdvantage<FalseShift> {
 public:
  static Eigen::ArrayXd changed(const RolloutStep&, const Eigen::ArrayXd& rewards) {
    return rewards;
  }
  static AdvantageProperties properties() { return {.shift_free = true}; }
};

class FalseScale : public RewardAdvantage<FalseScale> {
 public:
  static Eigen::ArrayXd changed(const RolloutStep&, const Eigen::ArrayXd& rewards) {
    return rewards.square();
  }
  static AdvantageProperties properties() { return {.scales = true}; }
};

class TooShort : public RewardAdvantage<TooShort> {
 public:
  static Eigen::ArrayXd changed(const RolloutStep&, const Eigen::ArrayXd& rewards) {
    return rewards.head(2);
  }
};

TEST_CASE("check_advantage finds what is wrong, and nothing else", "[testing]") {
  using testing::check_advantage;
  CHECK(check_advantage(SoundAdvantage()).text() == "");
  CHECK_FAILS(check_advantage(ReadsOthers()), "acted", "unscorable");
  CHECK_FAILS(check_advantage(Undeclared()), "undeclared");
  CHECK_FAILS(check_advantage(SpoiledMean()), "unscorable");
  CHECK_FAILS(check_advantage(FirstIsBaseline()), "permutation");
  CHECK_FAILS(check_advantage(FalseShift()), "property");
  CHECK_FAILS(check_advantage(FalseScale()), "property");
  const LossReport report = check_advantage(TooShort());
  REQUIRE(report.failures.size() >= 5);
  CHECK(report.failures.front().text.find("expected 'mine' to return [") != std::string::npos);
}

TEST_CASE("check_objective finds an advantage that sees the part", "[testing]") {
  // A rule may not read the length of what it is given, which a cut changes.
  const TokenObjective objective(GivenAdvantage(), Normalizing());
  CHECK_FAILS(testing::check_objective(objective), "cut");
}

}  // namespace
}  // namespace prefopt
