// SPDX-License-Identifier: Apache-2.0

// 2405.16436: with few pairs that cover a part of the actions, the true reward of DPO rises and
// then falls as training continues, and the chosen actions become less likely; RPO's term of their
// likelihood, the adversarial regularizer, prevents both. Log-linear policies under plain gradient
// descent. The reference seldom takes the actions without data; they are worse than the features
// that the data cover suggest, by their own feature, so that the class holds the
// optimum. Controls: actions without data that are as good as they look; many pairs that cover all
// actions.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lab/experiments.h"
#include "lab/gains.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab::rpo_overoptimization {
namespace {

using namespace exact;
using Eigen::MatrixXd;
using Eigen::VectorXd;

constexpr Index kPrompts = 6, kActions = 16, kCovered = 4, kFeatures = 12;
constexpr Index kPairs = 40, kManyPairs = 20000;
constexpr double kUncoveredLogit = -2.5;  ///< of the reference, where the others have 0
constexpr double kDisappointment = 4;     ///< reward that an action without data lacks
constexpr double kLearningRate = 20;

struct Case {
  std::string name, loss;
  bool partial;
  double disappointment;
};

const std::string kDpo = R"({"type": "dpo", "beta": 0.1})";
const std::vector<Case> kCases{
    {"dpo", kDpo, true, kDisappointment},
    {"rpo", R"({"type": "rpo", "beta": 0.1, "eta": 0.1})", true, kDisappointment},
    {"dpo, uncovered actions as good as they look", kDpo, true, 0},
    {"dpo, many pairs of all actions", kDpo, false, kDisappointment}};

/// Steps at which a policy is measured: 0, 1, 2, 3, 4, 6, 8, …
std::vector<int> checkpoints(bool quick) {
  std::vector<int> steps{0};
  for (double step = 1; step <= (quick ? 2048 : 8192); step *= std::sqrt(2)) {
    const int rounded = static_cast<int>(std::lround(step));
    if (rounded != steps.back()) steps.push_back(rounded);
  }
  return steps;
}

struct World {
  World(std::uint64_t seed, double disappointment)
      : random(seed), covered(Table::Zero(kActions, kPrompts)) {
    covered.topRows(kCovered) = 1;
    features.resize(kActions * kPrompts, kFeatures + 1);
    features.leftCols(kFeatures) =
        random.normals(kActions * kPrompts, kFeatures).matrix() / std::sqrt(kFeatures);
    features.rightCols(1) = (1 - covered).reshaped().matrix();
    VectorXd direction = 2 * random.normals(kFeatures + 1, 1).matrix();
    direction[kFeatures] = -disappointment;
    rewards = (features * direction).reshaped(kActions, kPrompts).array();
    ref = log_softmax(kUncoveredLogit * (1 - covered));
  }

  Random random;
  Table covered, ref, rewards;
  MatrixXd features;
};

/// Reward above the reference's, and mean log-prob of the chosen actions above the reference's, at
/// each checkpoint.
struct Curves {
  std::vector<double> reward, chosen;
};

Curves train(World world, const Case& one, const std::vector<int>& steps) {
  const Preferences preferences = Preferences::bradley_terry(world.rewards);
  const Table behaviour = one.partial ? covering(world.ref, world.covered)
                                      : log_softmax(Table::Zero(kActions, kPrompts));
  const Pairs pairs = merged(
      sample(population(behaviour, preferences), one.partial ? kPairs : kManyPairs, world.random));
  const SoftmaxPolicy policy = SoftmaxPolicy::log_linear(world.ref, world.features);
  const Objective objective(ExactLoss(one.loss), policy, world.ref, pairs);
  Curves curves;
  descend(objective, VectorXd::Zero(policy.parameters()), kLearningRate, steps.back(),
          [&](int step, const VectorXd& theta) {
            if (!std::binary_search(steps.begin(), steps.end(), step)) return;
            const Table logps = policy.logps(theta);
            curves.reward.push_back(gain(logps, world.ref, world.rewards));
            curves.chosen.push_back(chosen_gain(logps, world.ref, pairs));
          });
  return curves;
}

/// Both curves, case by case.
std::vector<double> run_seed(int seed, const std::vector<int>& steps) {
  std::vector<double> row;
  for (const Case& one : kCases) {
    const Curves curves =
        train(World(static_cast<std::uint64_t>(seed), one.disappointment), one, steps);
    row.insert(row.end(), curves.reward.begin(), curves.reward.end());
    row.insert(row.end(), curves.chosen.begin(), curves.chosen.end());
  }
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const std::vector<int> steps = checkpoints(settings.quick);
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, steps); });
  const std::size_t points = steps.size();
  Report report{
      .data = {{"rpo-overoptimization", {"case", "step", "measure", "mean", "low", "high"}}}};
  const std::vector<std::string> measures{"true reward above the reference's",
                                          "mean log π / π_ref of the chosen actions, nats"};
  for (std::size_t m = 0; m < measures.size(); ++m) {
    detail::Chart chart{.title = m == 0 ? "Few pairs, partial coverage: reward along training"
                                        : "Few pairs, partial coverage: likelihood of the chosen",
                        .x_label = "steps of gradient descent",
                        .y_label = measures[m],
                        .log_x = true};
    for (std::size_t c = 0; c < kCases.size(); ++c) {
      detail::Series series{.name = kCases[c].name};
      for (std::size_t i = 0; i < points; ++i) {
        const Estimate at = mean(by_seed, (2 * c + m) * points + i);
        add_point(series, steps[i], at);
        report.data[0].rows.push_back({kCases[c].name, static_cast<double>(steps[i]),
                                       m == 0 ? "reward" : "chosen", at.value, at.low, at.high});
      }
      chart.series.push_back(std::move(series));
    }
    report.pictures.push_back(
        {m == 0 ? "rpo-overoptimization-reward" : "rpo-overoptimization-chosen", std::move(chart)});
  }

  // Of the curve that is the mean over seeds, so that the noise of single seeds makes no peak.
  const auto drop = [&](std::size_t c) {
    return bootstrap(by_seed.size(), [&](const std::vector<std::size_t>& seeds) {
      const auto curve = mean_curve(by_seed, seeds, 2 * c * points, points);
      const double peak = *std::max_element(curve.begin(), curve.end());
      return (peak - curve.back()) / peak;
    });
  };
  const auto rise = [&](std::size_t c) { return mean(by_seed, 2 * c * points + 6); };
  const auto chosen = [&](std::size_t c) { return mean(by_seed, (2 * c + 2) * points - 1); };
  const Estimate dpo_drop = drop(0), rpo_drop = drop(1), as_good = drop(2), all = drop(3);
  const Estimate dpo_chosen = chosen(0), rpo_chosen = chosen(1), dpo_rise = rise(0);
  report.verdicts = {
      {fmt::format("DPO's true reward rises: gain after {} steps", steps[6]), dpo_rise, "above 0",
       dpo_rise.low > 0},
      {"and falls: share of its peak that is lost at the end", dpo_drop, "above 0.1",
       dpo_drop.low > 0.1},
      {"RPO's does not fall: share of its peak that is lost", rpo_drop, "below 0.05",
       rpo_drop.high < 0.05},
      {"DPO's chosen actions become less likely: change of log π, nats", dpo_chosen, "below 0",
       dpo_chosen.high < 0},
      {"RPO's do not: change of log π, nats", rpo_chosen, "above −0.5", rpo_chosen.low > -0.5},
      {"control: where actions without data are as good as they look, share DPO loses", as_good,
       "below 0.25", as_good.high < 0.25},
      {"control: with many pairs of all actions, share DPO loses", all, "below 0.05",
       all.high < 0.05}};
  return report;
}

}  // namespace prefopt::lab::rpo_overoptimization
