// SPDX-License-Identifier: Apache-2.0

// 2404.14367: whether pairs come from the data or from the policy, and whether what loses is pushed
// down (dpo) or only the winners imitated (sft on them), in the paper's bandit of 100 actions: data
// are Cauchy around action 15, the reward is a bump around action 70 that they seldom have. Either
// axis suffices to get there; with neither the policy stays with the data. Tabular policies,
// expectations in place of samples, steps of equal length; nothing is drawn. Control: the bump
// around action 20, within the data, where the gap between both axes and neither shrinks.

#include <algorithm>
#include <cmath>
#include <utility>

#include "lab/experiments.h"
#include "prefopt/exact/measures.h"

namespace prefopt::lab::on_policy_axes {
namespace {

using namespace exact;
using Eigen::ArrayXd;
using Eigen::ArrayXXd;

constexpr Index kActions = 100;
constexpr double kBeta = 0.05, kStep = 0.2;
constexpr double kDataCenter = 15, kDataScale = 5, kBumpWidth = 10;
constexpr int kSteps = 600, kEvery = 50;

struct Arm {
  std::string name;
  bool on_policy, pushes_down;
};

const std::vector<Arm> kArms{{"data, winners only", false, false},
                             {"data, losers pushed down", false, true},
                             {"own samples, winners only", true, false},
                             {"own samples, losers pushed down", true, true}};

ArrayXd places() { return ArrayXd::LinSpaced(kActions, 0, kActions - 1); }

/// Gradient in the logits; `wins` has the chance of each pair at (winner, loser).
ArrayXd gradient(const ArrayXd& logps, const ArrayXd& ref, const ArrayXXd& wins, bool pushes_down) {
  if (!pushes_down) {  // - sum of wins log pi
    return wins.sum() * logps.exp() - wins.rowwise().sum();
  }
  const ArrayXd ratios = kBeta * (logps - ref);
  const ArrayXXd margins = ratios.replicate(1, kActions).rowwise() - ratios.transpose();
  const ArrayXXd push = wins / (1 + margins.exp());
  return -kBeta * (push.rowwise().sum() - push.colwise().sum().transpose());
}

/// Mean reward before the first step and after each kEvery.
std::vector<double> train(const Arm& arm, double peak) {
  const ArrayXd reward = (-((places() - peak) / kBumpWidth).square()).exp();
  const ArrayXXd margins = reward.replicate(1, kActions).rowwise() - reward.transpose();
  const ArrayXXd preferred = 1 / (1 + (-margins).exp());
  const ArrayXd ref =
      log_softmax(-(1 + ((places() - kDataCenter) / kDataScale).square()).log()).col(0);
  const auto wins_among = [&](const ArrayXd& logps) -> ArrayXXd {
    const ArrayXd p = logps.exp();
    return 2 * (p.matrix() * p.matrix().transpose()).array() * preferred;
  };
  const ArrayXXd of_data = wins_among(ref);
  ArrayXd logps = ref;
  std::vector<double> rewards{expectation(logps, reward)};
  for (int step = 1; step <= kSteps; ++step) {
    const ArrayXd slope =
        gradient(logps, ref, arm.on_policy ? wins_among(logps) : of_data, arm.pushes_down);
    const double length = std::max(slope.matrix().norm(), 1e-300);
    logps = log_softmax(logps - kStep / length * slope).col(0);
    if (step % kEvery == 0) rewards.push_back(expectation(logps, reward));
  }
  return rewards;
}

}  // namespace

Report run(const Settings& /*settings*/) {
  std::vector<double> steps;
  for (int step = 0; step <= kSteps; step += kEvery) steps.push_back(step);
  Report report{.data = {{"on-policy-axes", {"case", "step", "reward", "low", "high"}}}};
  std::vector<std::vector<double>> ends;
  for (const double peak : {70.0, 20.0}) {
    const bool is_control = peak < 50;
    report.pictures.push_back({is_control ? "on-policy-axes-control" : "on-policy-axes",
                               {.title = is_control ? "The best actions are in the data"
                                                    : "The best actions are rare in the data",
                                .x_label = "steps",
                                .y_label = "reward"}});
    ends.emplace_back();
    for (const Arm& arm : kArms) {
      const auto rewards = train(arm, peak);
      std::vector<Estimate> exact_rewards;
      for (const double reward : rewards) exact_rewards.push_back(exactly(reward));
      add_curve(report, arm.name + (is_control ? ", control" : ""), steps, exact_rewards);
      ends.back().push_back(rewards.back());
    }
  }
  const auto& [rare, covered] = std::pair(ends[0], ends[1]);
  report.verdicts = {
      below("data, winners only: reward at the end", exactly(rare[0]), 0.2),
      above("data, losers pushed down", exactly(rare[1]), 0.5),
      above("own samples, winners only", exactly(rare[2]), 0.9),
      above("own samples, losers pushed down", exactly(rare[3]), 0.9),
      above("control: with the best actions in the data both axes gain less over neither: by",
            exactly((rare[3] - rare[0]) - (covered[3] - covered[0])), 0.2)};
  return report;
}

}  // namespace prefopt::lab::on_policy_axes
