// SPDX-License-Identifier: Apache-2.0

// 2405.21046 (XPO): each round draws one action of the policy and one of the reference, labels the
// pair, and minimizes over all pairs so far the dpo loss plus alpha sum log pi of the reference's
// actions. That makes what the reference has not drawn look better, so that a rare good action is
// found without waiting for 1/p draws. Implicit rewards are bounded, without which there is no
// minimum. Each fit is minimized exactly, and once more by ten steps of gradient descent, whose
// pull on an action is in proportion to its probability. Controls: the opposite sign (pessimism);
// a rare action that is the worst. At the end the world of vpo-regret, whose fits descend, with
// exact minimization.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "lab/bounded_fit.h"
#include "lab/experiments.h"
#include "lab/rare_bandit.h"
#include "prefopt/exact/preferences.h"

namespace prefopt::lab::xpo_exploration {
namespace {

using namespace exact;
using Eigen::ArrayXd;

constexpr Index kActions = 5;
constexpr double kBeta = 0.1, kMost = 1, kAlpha = 0.01;
constexpr int kDescentSteps = 10;
constexpr int kGapRounds = 50;
constexpr double kVpoWeight = 0.5;  ///< as in vpo-regret

enum class Fit { kExact, kDescent };

struct Method {
  std::string name;
  double alpha;
  Fit fit;
};

const std::vector<Method> kMethods{{"dpo", 0, Fit::kExact},
                                   {"xpo", kAlpha, Fit::kExact},
                                   {"pessimism", -kAlpha, Fit::kExact},
                                   {"dpo, descent", 0, Fit::kDescent},
                                   {"xpo, descent", kAlpha, Fit::kDescent}};

/// The reference draws action 0 with probability `rarity`; its reward is `rare_reward`.
struct Bandit {
  Bandit(std::uint64_t seed, double rarity, double rare_reward)
      : random(seed), rewards(kActions, 1) {
    Table logits = 0.3 * random.normals(kActions, 1);
    logits(0, 0) = std::log(rarity / (1 - rarity) * logits.bottomRows(kActions - 1).exp().sum());
    ref = log_softmax(logits);
    for (Index y = 0; y < kActions; ++y) rewards(y, 0) = 0.6 * random.uniform() - 0.3;
    rewards(0, 0) = rare_reward;
  }

  Random random;
  Table ref, rewards;
};

struct Course {
  double found = 0;  ///< the round in which the rare action was drawn first, or one beyond the last
  double regret = 0;  ///< sum of gaps in regularized reward over kGapRounds
};

Course explore(Bandit bandit, const Method& method, int most_rounds, bool stops_when_found) {
  const Preferences preferences = Preferences::bradley_terry(bandit.rewards);
  BoundedFit fit(bandit.ref, kBeta, kMost);
  ArrayXd f = ArrayXd::Zero(kActions);
  Course course{.found = most_rounds + 1.0};
  for (int round = 1; round <= most_rounds; ++round) {
    const Table logps = fit.logps(f);
    if (round <= kGapRounds) {
      course.regret += suboptimality_gap(logps, bandit.ref, bandit.rewards, kBeta);
    }
    const Index own = bandit.random.index(logps.col(0).exp());
    const Index other = bandit.random.index(bandit.ref.col(0).exp());
    if (own == 0 || other == 0) {
      course.found = std::min(course.found, static_cast<double>(round));
      if (stops_when_found) break;
    }
    const bool wins = bandit.random.uniform() < preferences(0, own, other);
    if (own != other) fit.add_pair(wins ? own : other, wins ? other : own);
    fit.add_incentive(other, method.alpha);
    f = method.fit == Fit::kExact ? fit.minimize(f)
                                  : fit.descend(std::move(f), kDescentSteps, round);
  }
  return course;
}

/// Regret of vpo, online with `weight`, in the world of vpo-regret, each fit minimized exactly.
double exact_vpo_regret(RareBandit world, double weight, int rounds) {
  const Preferences preferences = Preferences::bradley_terry(world.rewards);
  BoundedFit fit(world.ref, RareBandit::kBeta, RareBandit::kMostReward);
  fit.set_incentive(weight * RareBandit::kBeta * world.ref.col(0).exp());
  ArrayXd f = ArrayXd::Zero(RareBandit::kActions);
  double regret = 0;
  for (int round = 0; round < rounds; ++round) {
    const Table logps = fit.logps(f);
    regret += world.gap(logps);
    const Index own = world.random.index(logps.col(0).exp());
    const Index other = world.random.index(world.ref.col(0).exp());
    if (own == other) continue;
    const bool wins = world.random.uniform() < preferences(0, own, other);
    fit.add_pair(wins ? own : other, wins ? other : own);
    f = fit.minimize(f);
  }
  return regret;
}

struct Sizes {
  std::vector<double> rarities;
  int most_rounds, vpo_rounds;
};

/// Rounds until found, method by method, for each rarity; sums of gaps of dpo and xpo where the
/// rare action is good and where it is bad; regret of dpo and vpo in the world of vpo-regret.
std::vector<double> run_seed(int seed, const Sizes& sizes) {
  const auto number = static_cast<std::uint64_t>(seed);
  std::vector<double> row;
  for (const Method& method : kMethods) {
    for (const double rarity : sizes.rarities) {
      row.push_back(explore({number, rarity, kMost}, method, sizes.most_rounds, true).found);
    }
  }
  for (const double reward : {kMost, -kMost}) {
    for (std::size_t m = 0; m < 2; ++m) {
      row.push_back(
          explore({number, sizes.rarities[1], reward}, kMethods[m], kGapRounds, false).regret);
    }
  }
  for (const double weight : {0.0, kVpoWeight}) {
    row.push_back(exact_vpo_regret(RareBandit(number), weight, sizes.vpo_rounds));
  }
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  Sizes sizes{{0x1p-5, 0x1p-8}, 400, 256};
  if (!settings.quick) sizes = {{0x1p-5, 0x1p-8, 0x1p-11}, 1200, 1024};
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, sizes); });
  const std::size_t points = sizes.rarities.size();
  std::vector<double> inverse;
  for (const double rarity : sizes.rarities) inverse.push_back(1 / rarity);
  Report report{.data = {{"xpo-exploration", {"case", "1/p", "median rounds", "low", "high"}}},
                .pictures = {{"xpo-exploration",
                              {.title = "Rounds until the rare action is drawn",
                               .x_label = "1 / p, p the reference's probability of it",
                               .y_label = "median rounds",
                               .log_x = true,
                               .log_y = true}}}};
  for (std::size_t m = 0; m < kMethods.size(); ++m) {
    std::vector<Estimate> medians;
    for (std::size_t i = 0; i < points; ++i) medians.push_back(median(by_seed, m * points + i));
    add_curve(report, kMethods[m].name, inverse, medians);
  }
  const std::size_t rarest = points - 1, gaps = kMethods.size() * points;
  const auto at = [&](std::size_t m) { return median(by_seed, m * points + rarest); };
  const auto earlier = [&](std::size_t m, std::size_t than) {
    return bootstrap(by_seed.size(), [&](const std::vector<std::size_t>& seeds) {
      double sum = 0;
      for (const std::size_t seed : seeds) {
        sum += std::log(by_seed[seed][than * points + rarest] / by_seed[seed][m * points + rarest]);
      }
      return sum / static_cast<double>(seeds.size());
    });
  };
  report.verdicts = {
      below("XPO, exact, draws the rarest action early: median round", at(1), 5),
      above("DPO, exact, waits: median round", at(0), 20),
      above("control: so does the opposite sign: median round", at(2), 20),
      above("a good rare action: DPO's regret less XPO's over 50 rounds",
            mean_difference(by_seed, gaps, gaps + 1), 0),
      above("control: a bad one, for which XPO pays: its regret less DPO's",
            mean_difference(by_seed, gaps + 3, gaps + 2), 0),
      below("ten descent steps a round hide the incentive: mean log of DPO's rounds over XPO's",
            earlier(4, 3), std::log(2)),
      above("the world of vpo-regret, minimized exactly: optimism saves regret",
            mean_difference(by_seed, gaps + 4, gaps + 5), 0)};
  return report;
}

}  // namespace prefopt::lab::xpo_exploration
