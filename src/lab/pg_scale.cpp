// SPDX-License-Identifier: Apache-2.0

// 2402.03300 (GRPO) against 2402.14740 (RLOO): division by the group's standard deviation erases
// the scale of rewards, so that a prompt whose completions hardly differ weighs as much as one
// whose completions do. All groups of four of three actions. Control: leave_one_out.

#include <cmath>
#include <cstdint>
#include <utility>

#include "lab/experiments.h"
#include "lab/token_steps.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"
#include "prefopt/objectives/advantages/batch_std.h"
#include "prefopt/objectives/advantages/group_std.h"
#include "prefopt/objectives/advantages/leave_one_out.h"

namespace prefopt::lab::pg_scale {
namespace {

using Eigen::ArrayXd;
using Eigen::Index;
using exact::Random;

constexpr Index kActions = 3, kGroup = 4;
const std::vector<double> kScales{1, 0.1, 0.01, 0.001};
constexpr std::size_t kHundredth = 2;  ///< place in kScales

TokenObjective objective() { return TokenObjective({.aggregation = Aggregation::kSequenceSum}); }

double norm(const ArrayXd& x) { return std::sqrt(x.square().sum()); }

/// Norms of the expected gradient at each scale of the rewards.
std::vector<double> norms(const Advantage& advantage, const Bandit& bandit) {
  std::vector<double> all;
  for (const double scale : kScales) {
    const Bandit scaled{bandit.logps, scale * bandit.rewards};
    all.push_back(norm(group_gradient(advantage, objective(), scaled, kGroup).mean));
  }
  return all;
}

/// A uniform policy, one action of which is rewarded.
Bandit one_of_three() {
  return {ArrayXd::Constant(kActions, -std::log(3.0)), ArrayXd{{1.0, 0.0, 0.0}}};
}

/// Norms at each scale with leave_one_out, then with group_std.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const Bandit bandit{exact::log_softmax(random.normals(kActions, 1)).col(0),
                      ArrayXd::NullaryExpr(kActions, [&] { return random.uniform(); })};
  std::vector<double> row = norms(LeaveOneOut(), bandit);
  for (const double each : norms(GroupStd(), bandit)) row.push_back(each);
  return row;
}

/// A prompt of one_of_three() and one whose rewards are a hundredth of its, rated together: norm of
/// the second's expected gradient over that of the first. All pairs of groups of two.
double share_of_a_small_prompt(const Advantage& advantage) {
  constexpr Index kPair = 2, kGroups = kActions * kActions;
  const Bandit bandit = one_of_three();
  const TokenObjective of = objective();
  ArrayXd first = ArrayXd::Zero(kActions), second = first;
  const auto digits = [](Index group) { return std::pair(group % kActions, group / kActions); };
  for (Index g = 0; g < kGroups; ++g) {
    for (Index h = 0; h < kGroups; ++h) {
      const std::vector<Index> drawn{digits(g).first, digits(g).second, digits(h).first,
                                     digits(h).second};
      ArrayXd rewards = bandit.rewards(drawn);
      rewards.tail(kPair) *= kScales[kHundredth];
      RolloutStep step = listed_step({1, 1, 1, 1}, rewards);
      step.groups = {0, 0, 1, 1};
      const ArrayXd slopes =
          of.formula<ArrayXd>(token_numbers(step, bandit.logps(drawn), advantage.of(step)), 0)
              .grad_logps;
      for (Index i = 0; i < 2 * kPair; ++i) {
        ArrayXd& sum = i < kPair ? first : second;
        sum[drawn[static_cast<std::size_t>(i)]] -= slopes[i];
        sum += bandit.logps.exp() * slopes[i];
      }
    }
  }
  return norm(second) / norm(first);
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  const std::size_t points = kScales.size();
  Report report{.data = {{"pg-scale", {"case", "scale", "norm", "low", "high"}}},
                .pictures = {{"pg-scale",
                              {.title = "Norm of the expected gradient",
                               .x_label = "scale of the rewards",
                               .y_label = "norm",
                               .log_x = true,
                               .log_y = true}}}};
  const std::vector<double> left = norms(LeaveOneOut(), one_of_three());
  const std::vector<double> divided = norms(GroupStd(), one_of_three());
  for (std::size_t i = 0; i < points; ++i) {
    for (const auto& [name, value] : {std::pair("leave_one_out, one of three", left[i]),
                                      std::pair("group_std, one of three", divided[i])}) {
      report.data[0].rows.push_back({name, kScales[i], value, value, value});
    }
  }
  add_curve(report, "leave_one_out", kScales, means(by_seed, 0, points));
  add_curve(report, "group_std", kScales, means(by_seed, points, points));
  const double of_group = share_of_a_small_prompt(GroupStd());
  const double of_batch = share_of_a_small_prompt(BatchStd());
  const double of_control = share_of_a_small_prompt(LeaveOneOut());
  report.verdicts = {
      above("group_std: norm at a hundredth of the rewards over that at all of them",
            exactly(divided[kHundredth] / divided[0]), 0.9),
      above("the same with random policies", mean_ratio(by_seed, points + kHundredth, points), 0.9),
      within("control: leave_one_out: norm at a hundredth over that at all",
             exactly(left[kHundredth] / left[0]), 0.01, 1e-12),
      within("control: the same with random policies", mean_ratio(by_seed, kHundredth, 0), 0.01,
             1e-12),
      above("group_std: a prompt of a hundredth of the rewards of the other: share of its gradient",
            exactly(of_group), 0.9),
      within("batch_std keeps the scale between prompts of a step: the same share",
             exactly(of_batch), 0.01, 0.001),
      within("control: leave_one_out does: the same share", exactly(of_control), 0.01, 1e-12)};
  return report;
}

}  // namespace prefopt::lab::pg_scale
