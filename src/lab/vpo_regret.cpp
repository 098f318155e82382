// SPDX-License-Identifier: Apache-2.0

// 2405.19320: with a sign of +1 VPO explores. Each round draws a pair, labels it, and fits all
// pairs so far; regret is what the rounds' policies lose against the optimal KL-regularized reward.
// The paper bounds it by sqrt(T). With a sign of -1 VPO is cautious; the gap of its policy is
// bounded by 1 / sqrt(N). Tabular policies of a bandit whose best and worst actions the reference
// seldom takes. Rewards are bounded, as the paper assumes: without that, optimism has no optimum.
// One action of a pair comes from the policy, the other from the reference. Control: both from the
// policy, which soon takes one action alone, and learns nothing from pairs of it.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lab/experiments.h"
#include "lab/rare_bandit.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab::vpo_regret {
namespace {

using namespace exact;
using Eigen::VectorXd;

constexpr Index kActions = RareBandit::kActions;
constexpr double kBeta = RareBandit::kBeta, kMostReward = RareBandit::kMostReward;
constexpr double kWeight = 0.5;  ///< of the incentive, next to the sum over pairs
constexpr int kInnerSteps = 20;
const std::vector<double> kCounts{50, 200, 800, 3200};

std::string config(const std::string& mode, double weight, double pairs) {
  if (weight == 0) return fmt::format(R"({{"type": "dpo", "beta": {}}})", kBeta);
  return fmt::format(
      R"({{"type": "vpo", "beta": {}, "alpha": {}, "mode": "{}", "calibration": "samples"}})",
      kBeta, weight / pairs, mode);
}

/// Gradient descent among policies whose implicit rewards are bounded, from where the last round
/// ended.
VectorXd fit(const Objective& objective, VectorXd theta, int steps) {
  const double rate = 2 / (kBeta * kBeta), most = kMostReward / kBeta;
  for (int step = 0; step < steps; ++step) {
    theta -= rate * objective.evaluate(theta).gradient;
    theta = theta.cwiseMax(-most).cwiseMin(most);
  }
  return theta;
}

/// Pairs with counts, as they come in.
class Collected {
 public:
  void add(Index chosen, Index rejected) { counts_(chosen, rejected) += 1; }

  Pairs pairs() const {
    Pairs result;
    std::vector<double> weights;
    for (Index w = 0; w < kActions; ++w) {
      for (Index l = 0; l < kActions; ++l) {
        if (counts_(w, l) == 0) continue;
        result.prompts.push_back(0);
        result.chosen.push_back(w);
        result.rejected.push_back(l);
        weights.push_back(counts_(w, l) / counts_.sum());
      }
    }
    result.weights =
        Eigen::Map<const Eigen::ArrayXd>(weights.data(), static_cast<Index>(weights.size()));
    return result;
  }

 private:
  Eigen::ArrayXXd counts_ = Eigen::ArrayXXd::Zero(kActions, kActions);
};

enum class SecondAction { kReference, kPolicy };

/// Regret summed up to each of `rounds`.
std::vector<double> online(RareBandit world, double optimism, SecondAction second,
                           const std::vector<int>& rounds) {
  const Preferences preferences = Preferences::bradley_terry(world.rewards);
  const SoftmaxPolicy policy = SoftmaxPolicy::tabular(world.ref);
  Collected collected;
  VectorXd theta = VectorXd::Zero(kActions);
  double regret = 0;
  std::vector<double> result;
  for (int round = 1; round <= rounds.back(); ++round) {
    const Table logps = policy.logps(theta);
    regret += world.gap(logps);
    if (std::binary_search(rounds.begin(), rounds.end(), round)) result.push_back(regret);
    const Table& partner = second == SecondAction::kPolicy ? logps : world.ref;
    Index a = world.random.index(logps.col(0).exp());
    Index b = world.random.index(partner.col(0).exp());
    if (a == b) continue;  // says nothing
    if (world.random.uniform() >= preferences(0, a, b)) std::swap(a, b);
    collected.add(a, b);
    const Objective objective(ExactLoss(config("online", optimism, round)), policy, world.ref,
                              collected.pairs());
    theta = fit(objective, theta, kInnerSteps);
  }
  return result;
}

/// Gap of the policy that is fitted to pairs of the reference, for each count.
std::vector<double> offline(RareBandit world, double pessimism) {
  const SoftmaxPolicy policy = SoftmaxPolicy::tabular(world.ref);
  const Pairs law = population(world.ref, Preferences::bradley_terry(world.rewards));
  std::vector<double> gaps;
  for (const double count : kCounts) {
    const Pairs pairs = merged(sample(law, static_cast<Index>(count), world.random));
    const Objective objective(ExactLoss(config("offline", pessimism, count)), policy, world.ref,
                              pairs);
    gaps.push_back(
        world.gap(policy.logps(fit(objective, VectorXd::Zero(kActions), 100 * kInnerSteps))));
  }
  return gaps;
}

std::vector<int> rounds_of(bool quick) {
  std::vector<int> rounds;
  for (double round = 32; round <= (quick ? 256 : 1024); round *= 2) {
    rounds.push_back(static_cast<int>(round));
  }
  return rounds;
}

}  // namespace

Report run(const Settings& settings) {
  const std::vector<int> rounds = rounds_of(settings.quick);
  const auto by_seed = for_each_seed(settings.seeds, [&](int seed) {
    std::vector<double> row;
    const RareBandit world(static_cast<std::uint64_t>(seed));
    for (const std::vector<double>& part :
         {online(world, kWeight, SecondAction::kReference, rounds),
          online(world, 0, SecondAction::kReference, rounds),
          online(world, 0, SecondAction::kPolicy, rounds), offline(world, kWeight),
          offline(world, 0)}) {
      row.insert(row.end(), part.begin(), part.end());
    }
    return row;
  });
  const std::size_t points = rounds.size();
  const std::vector<double> times(rounds.begin(), rounds.end());
  Report report{.data = {{"vpo-regret", {"case", "x", "mean", "low", "high"}}}};
  const auto curve = [&](const std::string& name, std::size_t first,
                         const std::vector<double>& xs) {
    detail::Series series{.name = name, .xs = xs};
    for (std::size_t i = 0; i < xs.size(); ++i) {
      const Estimate at = mean(by_seed, first + i);
      series.ys.push_back(at.value);
      series.low.push_back(at.low);
      series.high.push_back(at.high);
      report.data[0].rows.push_back({name, xs[i], at.value, at.low, at.high});
    }
    return series;
  };
  report.pictures = {{"vpo-regret-online",
                      {.title = "Online: regret",
                       .x_label = "rounds T",
                       .y_label = "sum of gaps in regularized reward",
                       .log_x = true,
                       .log_y = true,
                       .series = {curve("vpo", 0, times), curve("dpo", points, times),
                                  curve("dpo, both actions from the policy", 2 * points, times)}}},
                     {"vpo-regret-offline",
                      {.title = "Offline: gap",
                       .x_label = "pairs N",
                       .y_label = "gap in regularized reward",
                       .log_x = true,
                       .log_y = true,
                       .series = {curve("vpo, offline", 3 * points, kCounts),
                                  curve("dpo, offline", 3 * points + kCounts.size(), kCounts)}}}};

  const Estimate vpo = exponent(by_seed, 0, times);
  const Estimate blind = exponent(by_seed, 2 * points, times);
  const Estimate offline_vpo = exponent(by_seed, 3 * points, kCounts);
  const auto saving = [&](std::size_t with, std::size_t without) {
    std::vector<std::vector<double>> savings;
    for (const auto& row : by_seed) savings.push_back({row[without] - row[with]});
    return mean(savings, 0);
  };
  const Estimate saved = saving(points - 1, 2 * points - 1);
  const Estimate offline_saved = saving(3 * points, 3 * points + kCounts.size());
  report.verdicts = {
      {"online VPO's regret against T: exponent", vpo, "0.5, the bound, within 0.15",
       std::abs(vpo.value - 0.5) < 0.15},
      {"optimism saves regret: DPO's less VPO's at the end", saved, "above 0", saved.low > 0},
      {"control: with pairs of the policy alone regret grows faster: exponent", blind, "above 0.7",
       blind.low > 0.7},
      {"offline VPO's gap against N: exponent", offline_vpo, "−0.5, the bound, or less, within 0.1",
       offline_vpo.value < -0.4},
      {"pessimism saves gap: DPO's less VPO's at the smallest N", offline_saved, "above 0",
       offline_saved.low > 0}};
  return report;
}

}  // namespace prefopt::lab::vpo_regret
