// SPDX-License-Identifier: Apache-2.0

// 2310.10505 (ReMax), 2402.14740 (RLOO), 2402.03300 (GRPO): which baselines leave the expected
// gradient as it is, and what they do to its variance. One prompt of five actions, a softmax
// policy, all 625 groups of four. Control: the best reward of the own group as a baseline, which
// looks at the sample.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "lab/token_steps.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"
#include "prefopt/objectives/advantages/greedy.h"
#include "prefopt/objectives/advantages/group_mean.h"
#include "prefopt/objectives/advantages/group_std.h"
#include "prefopt/objectives/advantages/leave_one_out.h"
#include "prefopt/objectives/advantages/none.h"

namespace prefopt::lab::pg_baselines {
namespace {

using Eigen::ArrayXd;
using Eigen::Index;
using exact::Random;

constexpr Index kActions = 5, kGroup = 4;

/// The reward less the best of its group, the completion itself among them.
class OwnGroupMax : public AdvantageBase<OwnGroupMax> {
 public:
  using AdvantageBase::AdvantageBase;

  ArrayXd of(const RolloutStep& step) const {
    return detail::per_group(
        step, [](const ArrayXd& rewards) -> ArrayXd { return rewards - rewards.maxCoeff(); });
  }
  static PieceInfo info() { return {.kind = "own_group_max", .formula = "r - max"}; }
};

struct NamedAdvantage {
  std::string name;
  Advantage advantage;
};

enum : std::size_t { kNone, kGreedy, kLeaveOneOut, kGroupMean, kGroupStd, kOwnMax, kAdvantages };

const std::vector<NamedAdvantage>& advantages() {
  static const std::vector<NamedAdvantage> all{
      {"none (REINFORCE)", NoBaseline()},      {"greedy (ReMax)", GreedyBaseline()},
      {"leave_one_out (RLOO)", LeaveOneOut()}, {"group_mean (Dr. GRPO)", GroupMean()},
      {"group_std (GRPO)", GroupStd()},        {"control: the group's best", OwnGroupMax()}};
  return all;
}

/// The expected gradient next to the true one.
struct Quality {
  double scale;  ///< of its part along the true gradient
  double cosine;
  double variance;
  double error;  ///< largest difference to the true gradient
};

std::vector<Quality> qualities(const Bandit& bandit) {
  const TokenObjective objective({.aggregation = Aggregation::kSequenceSum});
  const ArrayXd exact = true_gradient(bandit);
  std::vector<Quality> all;
  for (const auto& [name, advantage] : advantages()) {
    const auto [mean, variance] = group_gradient(advantage, objective, bandit, kGroup);
    all.push_back({.scale = (mean * exact).sum() / exact.square().sum(),
                   .cosine = cosine(mean, exact),
                   .variance = variance,
                   .error = (mean - exact).abs().maxCoeff()});
  }
  return all;
}

struct Case {
  std::string name;
  Bandit bandit;
};

/// A logit of 5 gives 97 % of the probability.
std::vector<Case> cases() {
  const auto bandit = [](std::vector<double> logits) {
    const ArrayXd rewards{{1.0, 0.6, 0.5, 0.4, 0.2}};
    return Bandit{exact::log_softmax(Eigen::Map<ArrayXd>(logits.data(), kActions)).col(0), rewards};
  };
  return {{"diffuse", bandit({0.3, 0, 0.1, -0.2, 0})},
          {"a suboptimal action at 97 %", bandit({0, 5, 0, 0, 0})},
          {"the best action at 97 %", bandit({5, 0, 0, 0, 0})}};
}

/// Of a random policy: scale, cosine, variance and error of each advantage.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const ArrayXd logps = exact::log_softmax(random.normals(kActions, 1)).col(0);
  const ArrayXd rewards = ArrayXd::NullaryExpr(kActions, [&] { return random.uniform(); });
  std::vector<double> row;
  for (const Quality& of : qualities({logps, rewards})) {
    row.insert(row.end(), {of.scale, of.cosine, of.variance, of.error});
  }
  return row;
}

constexpr std::size_t scale_of(std::size_t advantage) { return 4 * advantage; }
constexpr std::size_t cosine_of(std::size_t advantage) { return 4 * advantage + 1; }
constexpr std::size_t variance_of(std::size_t advantage) { return 4 * advantage + 2; }
constexpr std::size_t error_of(std::size_t advantage) { return 4 * advantage + 3; }

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  Report report{
      .data = {{"pg-baselines", {"policy", "advantage", "scale", "cosine", "trace variance"}}},
      .pictures = {{"pg-baselines",
                    {.title = "Variance of the gradient of a group of four",
                     .x_label = "policy: diffuse, a suboptimal action at 97 %, the best at 97 %",
                     .y_label = "trace of the covariance",
                     .log_y = true}}}};
  std::vector<std::vector<Quality>> named;
  double unbiased = 0;
  for (const Case& each : cases()) {
    named.push_back(qualities(each.bandit));
    for (std::size_t a = 0; a < kAdvantages; ++a) {
      const Quality& of = named.back()[a];
      report.data[0].rows.push_back(
          {each.name, advantages()[a].name, of.scale, of.cosine, of.variance});
      if (a <= kLeaveOneOut) unbiased = std::max(unbiased, of.error);
    }
  }
  for (std::size_t a = 0; a < kAdvantages; ++a) {
    detail::Series series{.name = advantages()[a].name,
                          .style = detail::Series::Style::kLineAndPoints};
    for (std::size_t c = 0; c < named.size(); ++c) {
      series.xs.push_back(static_cast<double>(c));
      series.ys.push_back(named[c][a].variance);
    }
    report.pictures[0].chart.series.push_back(std::move(series));
    report.data[0].rows.push_back(
        {"random, mean", advantages()[a].name, mean(by_seed, scale_of(a)).value,
         mean(by_seed, cosine_of(a)).value, mean(by_seed, variance_of(a)).value});
    if (a <= kLeaveOneOut) unbiased = std::max(unbiased, largest(by_seed, error_of(a), 1));
  }
  const auto ratio = [&](std::size_t policy, std::size_t advantage) {
    return exactly(named[policy][advantage].variance / named[policy][kNone].variance);
  };
  report.verdicts = {
      below("none, greedy and leave_one_out are unbiased: distance to the true gradient, largest",
            exactly(unbiased), 1e-12),
      within("group_mean is leave_one_out times (k − 1) / k: scale",
             exactly(named[0][kGroupMean].scale), 0.75, 1e-12),
      below("diffuse: greedy's variance over that of none", ratio(0, kGreedy), 1),
      below("a suboptimal action at 97 %: greedy's variance over that of none", ratio(1, kGreedy),
            1),
      below("the best action at 97 %: greedy's variance over that of none", ratio(2, kGreedy), 1),
      below("the best action at 97 %: leave_one_out's variance over that of none",
            ratio(2, kLeaveOneOut), 1),
      below("random policies: greedy's variance over that of none",
            mean_ratio(by_seed, variance_of(kGreedy), variance_of(kNone)), 1),
      below("random policies: leave_one_out's variance over that of none",
            mean_ratio(by_seed, variance_of(kLeaveOneOut), variance_of(kNone)), 1),
      below("a suboptimal action at 97 %: group_std has another direction: cosine",
            exactly(named[1][kGroupStd].cosine), 0.95),
      below("control: so has the own group's best as a baseline: cosine",
            exactly(named[1][kOwnMax].cosine), 0.95),
      above("control: its distance to the true gradient of random policies",
            mean(by_seed, error_of(kOwnMax)), 1e-3)};
  return report;
}

}  // namespace prefopt::lab::pg_baselines
