// SPDX-License-Identifier: Apache-2.0

// 2406.01462: where the pairs cover a part of the actions only, DPO's loss says nothing
// of KL(pi || ref) on the others, however many pairs there are; a policy class that generalizes
// (here log-linear) can move all mass to an action that the reference hardly ever takes. HyPO adds
// that KL on samples of the policy. The data are the exact population. An action without data looks
// better than all others in the features that the data speak of, and is worse in one that they do
// not. Its probability p under the reference tends to 0: KL(pi || ref) of a policy that took it is
// log(1/p). Control: pairs that cover all actions.

#include <cmath>

#include "lab/experiments.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab::hypo_coverage {
namespace {

using namespace exact;
using Eigen::MatrixXd;
using Eigen::VectorXd;

constexpr Index kCovered = 5, kFeatures = 3;
constexpr double kLambda = 0.05;  ///< so that its bound, log 2 / lambda, is less than log(1/p)
const std::vector<double> kRarities{1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7};  ///< 1/p

struct Case {
  std::string name, loss;
  bool all_covered;
};

const std::vector<Case> kCases{
    {"dpo", R"({"type": "dpo", "beta": 0.02})", false},
    {"hypo", R"({"type": "hypo", "beta": 0.02, "lambda": 0.05})", false},
    {"dpo, all actions covered", R"({"type": "dpo", "beta": 0.02})", true}};

/// The last action has no data. Its features are twice those of the best other, which promises
/// more, but for one that none of the others has.
struct World {
  explicit World(std::uint64_t seed) {
    Random random(seed);
    features = MatrixXd::Zero(kCovered + 1, kFeatures + 1);
    features.topLeftCorner(kCovered, kFeatures) = random.normals(kCovered, kFeatures).matrix();
    VectorXd theta = random.normals(kFeatures + 1, 1).matrix();
    theta.head(kFeatures).normalize();
    VectorXd values = features * theta;
    Index best = 0;
    const double top = values.head(kCovered).maxCoeff(&best);
    if (top < 0.5) {  // what is doubled has to be good
      features.row(best).head(kFeatures) += (0.5 - top) * theta.head(kFeatures).transpose();
    }
    features.row(kCovered) = 2 * features.row(best);
    features(kCovered, kFeatures) = 1;
    theta[kFeatures] = -4;
    rewards = features * theta;
  }

  MatrixXd features;
  Table rewards;
};

/// KL(pi || ref) for each rarity, case by case, then the rewards, then the reference's.
std::vector<double> run_seed(int seed) {
  const World world(static_cast<std::uint64_t>(seed));
  std::vector<double> kls, rewards;
  for (const Case& one : kCases) {
    for (const double rarity : kRarities) {
      Table base = Table::Zero(kCovered + 1, 1);
      base(kCovered, 0) = std::log(kCovered / (rarity - 1));
      const Table ref = log_softmax(base);
      Table covered = Table::Ones(kCovered + 1, 1);
      if (!one.all_covered) covered(kCovered, 0) = 0;
      // Pairs of equally likely actions, so that no comparison is rare where all are covered.
      const Table behaviour = covering(Table::Zero(kCovered + 1, 1), covered);
      const SoftmaxPolicy policy = SoftmaxPolicy::log_linear(ref, world.features);
      const Objective objective(ExactLoss(one.loss), policy, ref,
                                population(behaviour, Preferences::bradley_terry(world.rewards)));
      const Minimum found =
          minimize(objective, VectorXd::Zero(policy.parameters()), {.gradient_tolerance = 1e-11});
      const Table logps = policy.logps(found.theta);
      kls.push_back(kl(logps, ref));
      rewards.push_back(expectation(logps, world.rewards));
    }
  }
  kls.insert(kls.end(), rewards.begin(), rewards.end());
  kls.push_back(world.rewards.topRows(kCovered).mean());  // the reference's, as p tends to 0
  return kls;
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  const std::size_t points = kRarities.size();
  Report report{.data = {{"hypo-coverage", {"case", "1/p", "kl", "low", "high", "reward"}}}};
  detail::Chart chart{.title = "Partial coverage: distance from the reference",
                      .x_label = "1 / p, p the reference's probability of the action without data",
                      .y_label = "KL(π ‖ π_ref), nats",
                      .log_x = true};
  std::vector<double> nats;
  for (const double rarity : kRarities) nats.push_back(std::log(rarity));
  std::vector<Estimate> slopes;
  for (std::size_t c = 0; c < kCases.size(); ++c) {
    detail::Series series{.name = kCases[c].name};
    for (std::size_t i = 0; i < points; ++i) {
      const Estimate distance = mean(by_seed, c * points + i);
      const Estimate reward = mean(by_seed, (kCases.size() + c) * points + i);
      add_point(series, kRarities[i], distance);
      report.data[0].rows.push_back({kCases[c].name, kRarities[i], distance.value, distance.low,
                                     distance.high, reward.value});
    }
    chart.series.push_back(std::move(series));
    slopes.push_back(bootstrap(by_seed.size(), [&](const std::vector<std::size_t>& seeds) {
      return slope(nats, mean_curve(by_seed, seeds, c * points, points));
    }));
  }
  report.pictures = {{"hypo-coverage", std::move(chart)}};

  const std::size_t rewards = kCases.size() * points;
  const std::size_t hypo = rewards + 2 * points - 1;  // at the smallest p
  const Estimate advantage = mean_difference(by_seed, hypo, rewards + points - 1);
  const Estimate gain = mean_difference(by_seed, hypo, rewards + kCases.size() * points);
  const double bound = std::log(2) / kLambda;
  const double largest_hypo = largest(by_seed, points, points);
  report.verdicts = {
      {"DPO's KL(π ‖ π_ref) against log(1/p): slope", slopes[0], "1 within 0.1",
       std::abs(slopes[0].value - 1) < 0.1},
      {"HyPO's: slope", slopes[1], "below 0.1 in size",
       std::max(std::abs(slopes[1].low), std::abs(slopes[1].high)) < 0.1},
      {"HyPO's KL is within log 2 / λ, which its loss at the reference allows: largest",
       exactly(largest_hypo), "below 13.86", largest_hypo < bound},
      {"HyPO's reward above DPO's, at the smallest p", advantage, "above 0", advantage.low > 0},
      {"and above the reference's", gain, "above 0", gain.low > 0},
      {"control: with all actions covered DPO's KL does not grow: slope", slopes[2],
       "below 0.1 in size", std::max(std::abs(slopes[2].low), std::abs(slopes[2].high)) < 0.1}};
  return report;
}

}  // namespace prefopt::lab::hypo_coverage
