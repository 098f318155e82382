// SPDX-License-Identifier: Apache-2.0
#include "prefopt/testing/objective_checks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/objectives/advantages/given.h"
#include "prefopt/objectives/rules/none.h"
#include "testing/draws.h"
#include "testing/token_members.h"

namespace prefopt::testing {
namespace {

using Array = Eigen::ArrayXd;
using Arrays = BasicTokenArrays<Array>;
using Output = BasicObjectiveOutput<Array>;

constexpr double kNoNumber = std::numeric_limits<double>::quiet_NaN();

std::string shown(double x) { return fmt::format("{:.6g}", x + 0.0); }  // no -0

bool is_close(double a, double b, double tolerance) {
  return std::abs(a - b) <= tolerance * (1 + std::abs(b)) || (std::isnan(a) && std::isnan(b));
}

Array zero_where_empty(const Array& x, Eigen::Index size) {
  return x.size() == 0 ? Array(Array::Zero(size)) : x;
}

Array as_eigen(const at::Tensor& x, Eigen::Index size) {
  if (!x.defined()) return Array::Zero(size);
  const at::Tensor numbers = x.detach().to(at::kDouble).contiguous();
  return Eigen::Map<const Array>(numbers.data_ptr<double>(), numbers.numel());
}

/// Failures of one piece, which its name and the seed end.
class Reporter {
 public:
  Reporter(std::string subject, std::uint64_t seed) : subject_(std::move(subject)), seed_(seed) {}

  void fail(std::string_view check, const std::string& what, const std::string& expected,
            const std::string& got) {
    report_.failures.push_back(
        {std::string(check), fmt::format("{}: expected {}, got {} ({}, seed {})", what, expected,
                                         got, subject_, seed_)});
  }

  void guarded(std::string_view check, const std::function<void()>& run) {
    try {
      run();
    } catch (const std::exception& error) {
      fail(check, fmt::format("check '{}'", check), "no exception", error.what());
    }
  }

  /// Reports the first number of `got` that is not that of `expected`.
  bool compare(std::string_view check, const std::string& what, const Array& got,
               const Array& expected, double tolerance) {
    if (got.size() != expected.size()) {
      fail(check, what, fmt::format("{} numbers", expected.size()), fmt::format("{}", got.size()));
      return false;
    }
    for (Eigen::Index i = 0; i < got.size(); ++i) {
      if (is_close(got[i], expected[i], tolerance)) continue;
      fail(check, fmt::format("{} at token {}", what, i), shown(expected[i]), shown(got[i]));
      return false;
    }
    return true;
  }

  void add(LossReport report) {
    for (Failure& failure : report.failures) report_.failures.push_back(std::move(failure));
  }

  bool has_failed(std::string_view check) const {
    return std::any_of(report_.failures.begin(), report_.failures.end(),
                       [&](const Failure& failure) { return failure.check == check; });
  }

  LossReport take() { return std::move(report_); }

 private:
  std::string subject_;
  std::uint64_t seed_;
  LossReport report_;
};

/// All that may be called a derivative at a point.
struct SlopeRange {
  double central = 0, low = 0, high = 0;

  SlopeRange operator+(const SlopeRange& other) const {
    return {central + other.central, low + other.low, high + other.high};
  }
};

SlopeRange slope_of(const std::function<double(double)>& value_at, double x, double tolerance) {
  constexpr double kStep = 1e-5;
  const double up = x + kStep, down = x - kStep;
  const double middle = value_at(x), above = value_at(up), below = value_at(down);
  const double right = (above - middle) / (up - x);
  const double left = (middle - below) / (x - down);
  const double central = (above - below) / (up - down);
  const double largest = std::max({std::abs(above), std::abs(middle), std::abs(below)});
  const double allowed = tolerance * std::abs(central) +
                         64 * std::numeric_limits<double>::epsilon() * (1 + largest) / kStep;
  return {central, std::min({left, right, central}) - allowed,
          std::max({left, right, central}) + allowed};
}

// Rules.

class RuleChecker {
 public:
  RuleChecker(const TokenRule& rule, const ObjectiveCheckOptions& options)
      : rule_(rule),
        options_(options),
        reporter_(fmt::format("rule '{}'", rule.info().kind), options.seed) {}

  LossReport run() {
    reporter_.guarded("difference", [&] { check_differences(); });
    reporter_.guarded("stops_ratio", [&] { check_stopped_ratio(); });
    reporter_.guarded("agreement", [&] { check_agreement(); });
    reporter_.guarded("token", [&] { check_tokens_apart(); });
    reporter_.guarded("finite", [&] { check_finite(); });
    reporter_.guarded("policy_gradient", [&] { check_policy_gradient(); });
    reporter_.guarded("config", [&] { check_config(); });
    for (const auto& [level, name] :
         {std::pair{RatioLevel::kToken, "token"}, std::pair{RatioLevel::kSequenceSum, "completion"},
          std::pair{RatioLevel::kSequenceMean, "mean of a completion"},
          std::pair{RatioLevel::kTurn, "turn"}}) {
      const bool is_possible = !rule_.of_completions() || level == RatioLevel::kToken ||
                               level == RatioLevel::kSequenceSum;
      if (!is_possible) continue;
      const TokenObjectiveOptions of{.level = level};
      reporter_.add(check_objective(
          TokenObjective(GivenAdvantage(), rule_, of,
                         fmt::format("rule '{}' at level {}", rule_.info().kind, name)),
          options_));
    }
    return reporter_.take();
  }

 private:
  using Inputs = RuleInputs<Array>;

  static Inputs inputs(const Array& log_ratios, const Array& logps, const Array& advantages) {
    constexpr double kLimit = 20;
    const Array ratios = log_ratios.max(-kLimit).min(kLimit).exp();
    return {.log_ratios = log_ratios,
            .ratios = ratios,
            .ratio_slopes = (log_ratios.abs() > kLimit).select(0, ratios),
            .logps = logps,
            .advantages = advantages};
  }

  Inputs random_inputs() const {
    Draws draws(options_.seed);
    constexpr Eigen::Index kTokens = 60;
    Array log_ratios(kTokens), logps(kTokens), advantages(kTokens);
    for (Eigen::Index i = 0; i < kTokens; ++i) {
      const double spread = i % 5 == 0 ? 25 : i % 5 == 1 ? 3 : 0.5;
      log_ratios[i] = draws.uniform(-spread, spread);
      logps[i] = draws.uniform(-6, -0.05);
      advantages[i] = i % 9 == 0 ? 0 : draws.uniform(-2, 2);
    }
    return inputs(log_ratios, logps, advantages);
  }

  static std::string place(const Inputs& in, Eigen::Index i) {
    return fmt::format("at log-ratio {}, log-prob {}, advantage {}", shown(in.log_ratios[i]),
                       shown(in.logps[i]), shown(in.advantages[i]));
  }

  void check_differences() {
    const Inputs in = random_inputs();
    const RuleOutputs<Array> out = rule_(in);
    const auto check = [&](std::string_view name, const Array& gradient, const Array& moved,
                           const std::function<Inputs(const Array&)>& with) {
      const Array got = zero_where_empty(gradient, moved.size());
      for (Eigen::Index i = 0; i < moved.size(); ++i) {
        const auto value_at = [&](double x) {
          Array changed = moved;
          changed[i] = x;
          return rule_(with(changed)).losses[i];
        };
        const SlopeRange slope = slope_of(value_at, moved[i], options_.tolerance);
        if (slope.low <= got[i] && got[i] <= slope.high) continue;
        reporter_.fail("difference", fmt::format("{} {}", name, place(in, i)),
                       shown(slope.central) + " by finite differences", shown(got[i]));
        return;
      }
    };
    check("by_logp", out.by_logp, in.logps,
          [&](const Array& x) { return inputs(in.log_ratios, x, in.advantages); });
    if (rule_.properties().stops_ratio) return;
    check("by_log_ratio", out.by_log_ratio, in.log_ratios,
          [&](const Array& x) { return inputs(x, in.logps, in.advantages); });
  }

  void check_stopped_ratio() {
    if (!rule_.properties().stops_ratio) return;
    const Array got = rule_(random_inputs()).by_log_ratio;
    if (got.size() == 0 || (got == 0).all()) return;
    reporter_.fail("stops_ratio", "by_log_ratio of a rule that declares stops_ratio", "none",
                   "numbers");
  }

  void check_agreement() {
    const Inputs in = random_inputs();
    const auto tensor = [](const Array& x) {
      return at::tensor(std::vector<double>(x.begin(), x.end()), at::kDouble);
    };
    const RuleOutputs<Array> of_arrays = rule_(in);
    const RuleOutputs<at::Tensor> of_tensors =
        rule_(RuleInputs<at::Tensor>{.log_ratios = tensor(in.log_ratios),
                                     .ratios = tensor(in.ratios),
                                     .ratio_slopes = tensor(in.ratio_slopes),
                                     .logps = tensor(in.logps),
                                     .advantages = tensor(in.advantages)});
    const auto check = [&](const char* name, const at::Tensor& a, const Array& b) {
      const Eigen::Index size = in.logps.size();
      reporter_.compare("agreement", fmt::format("{} of tensors", name), as_eigen(a, size),
                        zero_where_empty(b, size), 1e-12);
    };
    check("losses", of_tensors.losses, of_arrays.losses);
    check("by_log_ratio", of_tensors.by_log_ratio, of_arrays.by_log_ratio);
    check("by_logp", of_tensors.by_logp, of_arrays.by_logp);
    check("limited_below", of_tensors.limited_below, of_arrays.limited_below);
    check("limited_above", of_tensors.limited_above, of_arrays.limited_above);
  }

  void check_tokens_apart() {
    const Inputs in = random_inputs();
    const Eigen::Index half = in.logps.size() / 2;
    const RuleOutputs<Array> whole = rule_(in);
    const RuleOutputs<Array> part =
        rule_(inputs(in.log_ratios.head(half), in.logps.head(half), in.advantages.head(half)));
    const auto check = [&](const char* name, const Array& a, const Array& b) {
      reporter_.compare("token", fmt::format("{} without the later tokens", name),
                        zero_where_empty(a, half), zero_where_empty(b, in.logps.size()).head(half),
                        0);
    };
    check("losses", part.losses, whole.losses);
    check("by_log_ratio", part.by_log_ratio, whole.by_log_ratio);
    check("by_logp", part.by_logp, whole.by_logp);
  }

  void check_finite() {
    for (const double log_ratio : {-1e4, -700.0, -25.0, 0.0, 25.0, 700.0, 1e4}) {
      for (const double advantage : {-1e4, -1.0, 0.0, 1.0, 1e4}) {
        const auto one = [](double x) { return Array(Array::Constant(1, x)); };
        const Inputs in = inputs(one(log_ratio), one(-1e4), one(advantage));
        const RuleOutputs<Array> out = rule_(in);
        for (const auto& [name, x] :
             {std::pair{"losses", &out.losses}, std::pair{"by_log_ratio", &out.by_log_ratio},
              std::pair{"by_logp", &out.by_logp}}) {
          if (x->isFinite().all()) continue;
          reporter_.fail("finite", fmt::format("{} {}", name, place(in, 0)), "a finite number",
                         shown((*x)[0]));
          return;
        }
      }
    }
  }

  void check_policy_gradient() {
    if (!rule_.properties().policy_gradient) return;
    const Inputs random = random_inputs();
    const Eigen::Index size = random.logps.size();
    const Inputs in = inputs(Array::Zero(size), random.logps, random.advantages);
    const RuleOutputs<Array> out = rule_(in);
    reporter_.compare(
        "policy_gradient", "gradient at ratio 1",
        zero_where_empty(out.by_log_ratio, size) + zero_where_empty(out.by_logp, size),
        -in.advantages, 1e-12);
  }

  void check_config() {
    const auto all = registered_rules();
    const bool is_registered = std::any_of(all.begin(), all.end(), [&](const RuleEntry& entry) {
      return entry.info.kind == rule_.info().kind;
    });
    if (!is_registered) return;
    const std::string again = make_rule(rule_.config()).config();
    if (again != rule_.config()) reporter_.fail("config", "make_rule", rule_.config(), again);
  }

  const TokenRule& rule_;
  const ObjectiveCheckOptions& options_;
  Reporter reporter_;
};

// Objectives.

class ObjectiveChecker {
 public:
  ObjectiveChecker(const TokenObjective& objective, const ObjectiveCheckOptions& options)
      : objective_(objective),
        options_(options),
        beta_(objective.options().kl.coefficient),
        reporter_(fmt::format("objective '{}'", objective.name()), options.seed) {}

  LossReport run() {
    reporter_.guarded("difference", [&] {
      for (const double spread : {0.3, 3.0}) {
        if (!reporter_.has_failed("difference")) check_differences(spread);
      }
    });
    reporter_.guarded("agreement", [&] { check_agreement(); });
    reporter_.guarded("autograd", [&] { check_autograd(); });
    reporter_.guarded("first_update", [&] { check_first_update(); });
    reporter_.guarded("cut", [&] { check_cuts(random_token_arrays(options_.seed)); });
    reporter_.guarded("permutation", [&] { check_permutation(); });
    reporter_.guarded("misuse", [&] { check_misuse(); });
    return reporter_.take();
  }

  /// Of parts of two completions each, and of none.
  void check_cuts(const Arrays& in) {
    const Output whole = objective_.formula(in, beta_);
    double loss = 0;
    Array gradient = Array::Zero(in.logps.size());
    for (std::int64_t first = 0; first < in.completion_count; first += 2) {
      std::vector<std::int64_t> chosen{first};
      if (first + 1 < in.completion_count) chosen.push_back(first + 1);
      const Output part = objective_.formula(take_completions(in, chosen), beta_);
      loss += part.loss;
      Eigen::Index at = 0;
      for (Eigen::Index t = 0; t < in.logps.size(); ++t) {
        const bool is_in_part = std::lround(in.completions[t]) / 2 == first / 2;
        if (is_in_part) gradient[t] = part.grad_logps[at++];
      }
    }
    const std::string what = "loss of a step in parts";
    reporter_.compare("cut", what, Array::Constant(1, loss), Array::Constant(1, whole.loss), 1e-12);
    reporter_.compare("cut", "gradient of a step in parts", gradient, whole.grad_logps, 1e-12);
    const double nothing = objective_.formula(take_completions(in, {}), beta_).loss;
    if (nothing != 0) reporter_.fail("cut", "loss of no token", "0", shown(nothing));
  }

  LossReport take() { return reporter_.take(); }

 private:
  static double policy_term(const Output& out) { return out.terms.front().value; }

  /// Slope of the loss in one number. Where the rule stops its ratio, the older policies move along
  /// with the log-prob in its term, so that the ratio stays.
  SlopeRange slope_at(const Arrays& in, Array Arrays::*member, Eigen::Index i) const {
    const bool holds_ratio = objective_.rule().properties().stops_ratio && member == &Arrays::logps;
    const auto moved = [&](double x, bool with_others) {
      Arrays out = in;
      const double step = x - (in.*member)[i];
      (out.*member)[i] = x;
      if (with_others) {
        out.old_logps[i] += step;
        out.sampler_logps[i] += step;
      }
      return objective_.formula(out, beta_);
    };
    const double x = (in.*member)[i];
    if (!holds_ratio) {
      return slope_of([&](double y) { return moved(y, false).loss; }, x, options_.tolerance);
    }
    const auto rest = [&](double y) {
      double sum = 0;
      for (const auto& term : moved(y, false).terms) {
        if (term.name != "policy") sum += term.value;
      }
      return sum;
    };
    return slope_of([&](double y) { return policy_term(moved(y, true)); }, x, options_.tolerance) +
           slope_of(rest, x, options_.tolerance);
  }

  void check_differences(double spread) {
    const Arrays in = random_token_arrays(options_.seed, spread);
    const Output out = objective_.formula(in, beta_);
    for (const auto& member : kTokenGradients<Array>) {
      const Array gradient = zero_where_empty(out.*member.gradient, in.logps.size());
      for (Eigen::Index i = 0; i < gradient.size(); ++i) {
        const SlopeRange slope = slope_at(in, member.value, i);
        if (slope.low <= gradient[i] && gradient[i] <= slope.high) continue;
        reporter_.fail("difference", fmt::format("gradient of {} at token {}", member.name, i),
                       shown(slope.central) + " by finite differences", shown(gradient[i]));
        break;
      }
    }
  }

  void check_agreement() {
    for (const double spread : {0.3, 30.0}) {
      const Arrays in = random_token_arrays(options_.seed, spread);
      const Output expected = objective_.formula(in, beta_);
      const ObjectiveOutput got = objective_.formula(as_tensors(in), beta_);
      const auto check = [&](const std::string& what, const at::Tensor& a, const Array& b) {
        reporter_.compare("agreement", what + " of tensors", as_eigen(a, b.size()), b, 1e-11);
      };
      check("loss", got.loss, Array::Constant(1, expected.loss));
      for (std::size_t i = 0; i < kTokenGradients<Array>.size(); ++i) {
        check(fmt::format("gradient of {}", kTokenGradients<Array>[i].name),
              got.*kTokenGradients<at::Tensor>[i].gradient,
              zero_where_empty(expected.*kTokenGradients<Array>[i].gradient, in.logps.size()));
      }
      for (std::size_t i = 0; i < expected.terms.size(); ++i) {
        check(fmt::format("term {}", expected.terms[i].name), got.terms.at(i).value,
              Array::Constant(1, expected.terms[i].value));
      }
      for (std::size_t i = 0; i < expected.statistics.size(); ++i) {
        check(fmt::format("statistic {}", expected.statistics[i].name), got.statistics.at(i).sum,
              Array::Constant(1, expected.statistics[i].sum));
      }
    }
  }

  void check_autograd() {
    TokenArrays in = as_tensors(random_token_arrays(options_.seed));
    for (const auto& member : kTokenGradients<at::Tensor>) (in.*member.value).requires_grad_();
    const ObjectiveOutput out = objective_.forward(in);
    if (!out.loss.requires_grad()) {
      reporter_.fail("autograd", "loss", "a gradient function", "none");
      return;
    }
    constexpr double kOuter = 0.75;
    (kOuter * out.loss).backward();
    const Eigen::Index size = in.logps.size(0);
    for (const auto& member : kTokenGradients<at::Tensor>) {
      reporter_.compare("autograd", fmt::format("autograd's gradient of {}", member.name),
                        as_eigen((in.*member.value).grad(), size),
                        kOuter * as_eigen(out.*member.gradient, size), 1e-12);
    }
  }

  void check_first_update() {
    Arrays in = random_token_arrays(options_.seed);
    in.old_logps = in.logps;
    const Output expected = objective_.formula(in, beta_);
    in.old_logps = Array();
    const Output got = objective_.formula(in, beta_);
    reporter_.compare("first_update", "loss without old_logps", Array::Constant(1, got.loss),
                      Array::Constant(1, expected.loss), 1e-12);
    reporter_.compare("first_update", "gradient without old_logps", got.grad_logps,
                      expected.grad_logps, 1e-12);
  }

  void check_permutation() {
    const Arrays in = random_token_arrays(options_.seed);
    std::vector<std::int64_t> order(static_cast<std::size_t>(in.completion_count));
    std::iota(order.rbegin(), order.rend(), 0);
    const Arrays turned = take_completions(in, order);
    const Output expected = objective_.formula(in, beta_);
    const Output got = objective_.formula(turned, beta_);
    reporter_.compare("permutation", "loss of permuted completions", Array::Constant(1, got.loss),
                      Array::Constant(1, expected.loss), 1e-12);
    Arrays gradients = in;
    gradients.logps = expected.grad_logps;
    reporter_.compare("permutation", "gradient of permuted completions", got.grad_logps,
                      take_completions(gradients, order).logps, 1e-12);
  }

  void check_misuse() {
    const TokenArrays in = as_tensors(random_token_arrays(options_.seed));
    const auto expect_refused = [&](const TokenArrays& given, const std::string& what) {
      try {
        objective_.formula(given, beta_);
      } catch (const ShapeError&) {
        return;
      }
      reporter_.fail("misuse", what, "a ShapeError", "none");
    };
    for (const auto member : {&TokenArrays::advantages, &TokenArrays::completions,
                              &TokenArrays::lens, &TokenArrays::logps}) {
      TokenArrays given = in;
      given.*member = at::Tensor();
      expect_refused(given, "a missing array");
      given = in;
      given.*member = (in.*member).slice(0, 1);
      expect_refused(given, "a short array");
    }
    TokenArrays given = in;
    given.totals = {};
    expect_refused(given, "totals of 0");
  }

  const TokenObjective& objective_;
  const ObjectiveCheckOptions& options_;
  double beta_;
  Reporter reporter_;
};

// Advantages.

class AdvantageChecker {
 public:
  AdvantageChecker(const Advantage& advantage, const ObjectiveCheckOptions& options)
      : advantage_(advantage),
        options_(options),
        needs_(advantage.needs()),
        step_(random_rollouts(options.seed)),
        reporter_(fmt::format("advantage '{}'", advantage.info().kind), options.seed) {}

  LossReport run() {
    reporter_.guarded("acted", [&] { check_acted(); });
    reporter_.guarded("undeclared", [&] { check_undeclared(); });
    reporter_.guarded("unscorable", [&] { check_unscorable(); });
    reporter_.guarded("permutation", [&] { check_permutation(); });
    reporter_.guarded("cut", [&] { check_cuts(); });
    reporter_.guarded("property", [&] { check_properties(); });
    reporter_.guarded("config", [&] { check_config(); });
    return reporter_.take();
  }

 private:
  void check_acted() {
    RolloutStep poisoned = step_;
    for (const auto x :
         {&RolloutStep::given, &RolloutStep::token_rewards, &RolloutStep::values,
          &RolloutStep::old_logps, &RolloutStep::ref_logps, &RolloutStep::extra_logps}) {
      poisoned.*x = (step_.acted == 0).select(kNoNumber, step_.*x);
    }
    const Array expected = advantage_.of(step_);
    reporter_.compare("acted", "advantage with NaN where the policy did not choose",
                      advantage_.of(poisoned), expected, 0);
    reporter_.compare("acted", "advantage where the policy did not choose",
                      (step_.acted == 0).select(expected, 0), Array::Zero(step_.tokens()), 0);
  }

  void check_undeclared() {
    RolloutStep changed = step_;
    const auto replace = [&](Array& x) { x = 1 - 3 * x; };
    if (!needs_.greedy_rewards) replace(changed.greedy_rewards);
    if (!needs_.values) replace(changed.values);
    if (!needs_.given) replace(changed.given);
    if (!needs_.per_token) replace(changed.token_rewards);
    for (const auto x :
         {&RolloutStep::old_logps, &RolloutStep::ref_logps, &RolloutStep::extra_logps}) {
      replace(changed.*x);
    }
    reporter_.compare("undeclared", "advantage with other numbers that are not declared",
                      advantage_.of(changed), advantage_.of(step_), 0);
  }

  void check_unscorable() {
    if (needs_.given || advantage_.options().unscorable == Unscorable::kError) return;
    constexpr std::int64_t kWithout = 4;
    RolloutStep unrated = step_;
    unrated.rewards[kWithout] = kNoNumber;
    std::vector<std::int64_t> others;
    for (std::int64_t i = 0; i < step_.completions(); ++i) {
      if (i != kWithout) others.push_back(i);
    }
    RolloutStep as_advantages = unrated;
    as_advantages.given = advantage_.of(unrated);
    reporter_.compare("unscorable", "advantage next to a completion without a reward",
                      take_completions(as_advantages, others).given,
                      advantage_.of(take_completions(step_, others)), 1e-12);
    reporter_.compare("unscorable", "advantage of a completion without a reward",
                      take_completions(as_advantages, {kWithout}).given,
                      Array::Zero(step_.lens[static_cast<std::size_t>(kWithout)]), 0);
    const Array returns = advantage_.returns(unrated);
    const bool is_finite = returns.size() == 0 || (step_.acted == 0 || returns.isFinite()).all();
    if (!is_finite) {
      reporter_.fail("unscorable", "returns next to a completion without a reward",
                     "finite numbers", "others");
    }
  }

  void check_permutation() {
    std::vector<std::int64_t> order(static_cast<std::size_t>(step_.completions()));
    std::iota(order.rbegin(), order.rend(), 0);
    RolloutStep as_advantages = step_;
    as_advantages.given = advantage_.of(step_);
    reporter_.compare("permutation", "advantage of permuted completions",
                      advantage_.of(take_completions(step_, order)),
                      take_completions(as_advantages, order).given, 1e-12);
  }

  void check_cuts() {
    const TokenObjective objective(advantage_, NoRule(), {},
                                   fmt::format("advantage '{}'", advantage_.info().kind));
    ObjectiveChecker checker(objective, options_);
    checker.check_cuts(
        token_arrays_of(step_, objective.advantages(step_).advantages, options_.seed));
    reporter_.add(checker.take());
  }

  void check_properties() {
    const AdvantageProperties properties = advantage_.properties();
    const Array expected = advantage_.of(step_);
    if (properties.shift_free) {
      RolloutStep shifted = step_;
      for (Eigen::Index i = 0; i < shifted.rewards.size(); ++i) {
        shifted.rewards[i] += static_cast<double>(step_.groups[static_cast<std::size_t>(i)]) - 4;
      }
      reporter_.compare("property",
                        "shift_free: advantage with a constant on the rewards of a group",
                        advantage_.of(shifted), expected, 1e-11);
    }
    if (properties.scales) {
      RolloutStep doubled = step_;
      doubled.rewards *= 2;
      doubled.greedy_rewards *= 2;
      doubled.token_rewards *= 2;
      reporter_.compare("property", "scales: advantage of twice the rewards",
                        advantage_.of(doubled), 2 * expected, 1e-12);
    }
  }

  void check_config() {
    const auto all = registered_advantages();
    const bool is_registered = std::any_of(
        all.begin(), all.end(),
        [&](const AdvantageEntry& entry) { return entry.info.kind == advantage_.info().kind; });
    if (!is_registered) return;
    const std::string again = make_advantage(advantage_.config()).config();
    if (again != advantage_.config()) {
      reporter_.fail("config", "make_advantage", advantage_.config(), again);
    }
  }

  const Advantage& advantage_;
  const ObjectiveCheckOptions& options_;
  AdvantageNeeds needs_;
  RolloutStep step_;
  Reporter reporter_;
};

}  // namespace

LossReport check_rule(const TokenRule& rule, const ObjectiveCheckOptions& options) {
  return RuleChecker(rule, options).run();
}

LossReport check_advantage(const Advantage& advantage, const ObjectiveCheckOptions& options) {
  return AdvantageChecker(advantage, options).run();
}

LossReport check_objective(const TokenObjective& objective, const ObjectiveCheckOptions& options) {
  return ObjectiveChecker(objective, options).run();
}

}  // namespace prefopt::testing
