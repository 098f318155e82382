// SPDX-License-Identifier: Apache-2.0

// Where the KL penalty is put decides where a policy gradient ends (Schulman 2020's estimators;
// 2402.03300 has k3 in the loss). One prompt of four actions, the expected gradient of the
// registered objective, followed to its fixed point. The optimum of E r − β KL(π ‖ π_ref) is
// π_ref e^(r / β) / Z. Control: k1 in the loss, whose expected gradient is 0, so that nothing holds
// the policy; a config is refused.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "lab/kl_bandit.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"

namespace prefopt::lab::pg_kl_placement {
namespace {

using Eigen::ArrayXd;
using Eigen::Index;
using exact::Random;

struct Placement {
  std::string name;
  KlOptions kl;
};

KlOptions kl_of(KlEstimator estimator, KlPlace place, KlWeight weight = KlWeight::kNone) {
  return {.estimator = estimator, .place = place, .weight = weight, .coefficient = kKlCoefficient};
}

enum : std::size_t {
  kRewardK1,
  kAdvantageK1,
  kLossK2,
  kRatioK1,
  kRatioK3,
  kExact,
  kLossK3,
  kPlaces
};

const std::vector<Placement>& placements() {
  static const std::vector<Placement> all{
      {"k1 in the reward", kl_of(KlEstimator::kK1, KlPlace::kReward)},
      {"k1 in the advantage", kl_of(KlEstimator::kK1, KlPlace::kAdvantage)},
      {"k2 in the loss", kl_of(KlEstimator::kK2, KlPlace::kLoss)},
      {"k1 times the ratio in the loss", kl_of(KlEstimator::kK1, KlPlace::kLoss, KlWeight::kRatio)},
      {"k3 times the ratio in the loss", kl_of(KlEstimator::kK3, KlPlace::kLoss, KlWeight::kRatio)},
      {"exact in the loss", kl_of(KlEstimator::kExact, KlPlace::kLoss)},
      {"k3 in the loss", kl_of(KlEstimator::kK3, KlPlace::kLoss)}};
  return all;
}

TokenObjective objective_of(const KlOptions& kl) {
  return TokenObjective({.aggregation = Aggregation::kSequenceSum, .kl = kl});
}

TokenObjective k1_in_the_loss() { return objective_of(kl_of(KlEstimator::kK1, KlPlace::kLoss)); }

double distance(const ArrayXd& a, const ArrayXd& b) { return (a - b).abs().maxCoeff(); }

/// How far a policy is from a maximum of E r − β KL(π_ref ‖ π): the largest entry of the gradient.
double forward_kl_gradient(const KlBandit& bandit, const ArrayXd& logps) {
  const ArrayXd p = logps.exp();
  const double value = (p * bandit.rewards).sum();
  return (p * (bandit.rewards - value) - kKlCoefficient * (p - bandit.ref.exp())).abs().maxCoeff();
}

/// Log distance of each fixed point to the optimum; KL of k3's to it, and its distance to the
/// optimum of the other KL; the largest difference that k1 in the loss makes to the gradient.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  constexpr Index kActions = 4;
  const KlBandit bandit{
      .ref = exact::log_softmax(0.5 * random.normals(kActions, 1)).col(0),
      .rewards = ArrayXd::NullaryExpr(kActions, [&] { return random.uniform(); })};
  std::vector<double> row;
  ArrayXd end;
  for (const Placement& placement : placements()) {
    end = walk(objective_of(placement.kl), bandit, {});
    row.push_back(distance(end, tilted(bandit)));
  }
  row.push_back(exact::kl(end, tilted(bandit)));
  row.push_back(forward_kl_gradient(bandit, end));
  const ArrayXd any = exact::log_softmax(random.normals(kActions, 1)).col(0);
  row.push_back(distance(expected_gradient(k1_in_the_loss(), bandit, any),
                         expected_gradient(objective_of({}), bandit, any)));
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  constexpr Index kBest = 2;
  constexpr int kSteps = 20000, kDrawn = 200;
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  const KlBandit bandit = four_actions();
  Report report{.data = {{"pg-kl-placement-ends", {"place", "p1", "p2", "p3", "p4"}},
                         {"pg-kl-placement", {"case", "step", "probability", "low", "high"}}},
                .pictures = {{"pg-kl-placement",
                              {.title = "Probability of the best action along exact ascent",
                               .x_label = "steps",
                               .y_label = "probability"}}}};
  std::vector<double> best;
  const auto add_end = [&](const std::string& name, const ArrayXd& logps) {
    const ArrayXd p = logps.exp();
    report.data[0].rows.push_back({name, p[0], p[1], p[2], p[3]});
    best.push_back(p[kBest]);
  };
  const auto draw = [&](const std::string& name, const TokenObjective& objective) {
    std::vector<double> xs;
    std::vector<Estimate> ys;
    for (int steps = 0; steps <= kDrawn; steps += 10) {
      const ArrayXd logps =
          walk(objective, bandit, {.rate = 0.5, .steps = steps, .is_plain = true});
      xs.push_back(steps);
      ys.push_back(exactly(std::exp(logps[kBest])));
    }
    add_curve(report, name, xs, ys);
  };
  for (const Placement& placement : placements()) {
    add_end(placement.name, walk(objective_of(placement.kl), bandit, {}));
  }
  add_end("k1 in the loss",
          walk(k1_in_the_loss(), bandit, {.rate = 0.5, .steps = kSteps, .is_plain = true}));
  add_end("the optimum", tilted(bandit));
  draw(placements()[kRewardK1].name, objective_of(placements()[kRewardK1].kl));
  draw(placements()[kLossK3].name, objective_of(placements()[kLossK3].kl));
  draw("k1 in the loss", k1_in_the_loss());

  const double optimum = best.back(), of_k1 = best[kPlaces];
  report.verdicts = {
      below("k1 in reward or advantage ends at the optimum: log distance, largest",
            exactly(largest(by_seed, kRewardK1, 2)), 1e-8),
      below("so does k2 in the loss: largest", exactly(largest(by_seed, kLossK2, 1)), 1e-8),
      below("so do k1 and k3 times the ratio, and the exact KL, in the loss: largest",
            exactly(largest(by_seed, kRatioK1, 3)), 1e-8),
      within("four actions: probability of the best with k1 in the reward",
             exactly(best[kRewardK1]), optimum, 1e-10),
      below("k3 in the loss ends at the optimum: log distance, largest",
            exactly(largest(by_seed, kLossK3, 1)), 1e-8),
      below("it ends at that of E r − β KL(π_ref ‖ π): gradient there, largest",
            exactly(largest(by_seed, kPlaces + 1, 1)), 1e-10),
      within("four actions: probability of the best with k3 in the loss", exactly(best[kLossK3]),
             0.558419196994776, 1e-10),
      below("control: k1 in the loss changes nothing: difference of the gradient, largest",
            exactly(largest(by_seed, kPlaces + 2, 1)), 1e-14),
      above("control: nothing holds the policy then: probability of the best of four",
            exactly(of_k1), 0.999)};
  return report;
}

}  // namespace prefopt::lab::pg_kl_placement
