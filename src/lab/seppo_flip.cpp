// SPDX-License-Identifier: Apache-2.0

// 2410.05255 (SePPO): pairs of a data sample and a sample of a past policy, the reference, without
// feedback: -log sigmoid(beta (w - s l)), w and l their log-ratios, s = sign(w). Where the
// reference explains the data sample better than the policy does (w < 0), its own sample is pulled
// up instead of pushed down. Without the flip (SPIN) a reference that is better than the policy
// drags the policy down. Tabular policies, sums over all pairs. Control: a reference that is worse
// on all of the data, where both take the same steps.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/pairs.h"
#include "prefopt/exact/random.h"
#include "prefopt/math/functions.h"

namespace prefopt::lab::seppo_flip {
namespace {

using namespace exact;
using Eigen::ArrayXd;

constexpr Index kActions = 8, kDataActions = 4;
constexpr double kBeta = 0.1, kRate = 20;
constexpr double kWorse = 20;  ///< nats that a worse reference has less of each data action
constexpr int kSteps = 1000, kEvery = 100;

enum class Flip { kNone, kSign, kIndicator };

struct World {
  ArrayXd data, ref, start;  ///< log-probs
};

ArrayXd gradient(const World& world, const ArrayXd& logps, Flip flip) {
  const ArrayXd ratios = logps - world.ref;
  const ArrayXd data = world.data.unaryExpr([](double v) { return std::exp(v); });
  const ArrayXd ref = world.ref.exp();
  ArrayXd slopes = ArrayXd::Zero(kActions);
  for (Index own = 0; own < kActions; ++own) {
    const bool is_below = ratios[own] < 0;
    const double sign = flip == Flip::kNone || !is_below ? 1 : flip == Flip::kSign ? -1 : 0;
    for (Index other = 0; other < kActions; ++other) {
      const double margin = kBeta * (ratios[own] - sign * ratios[other]);
      const double push = data[own] * ref[other] * kBeta * math::sigmoid(-margin);
      slopes[own] -= push;
      slopes[other] += sign * push;
    }
  }
  return slopes - logps.exp() * slopes.sum();
}

/// Log-probs before the first step and after each kEvery.
std::vector<ArrayXd> train(const World& world, Flip flip) {
  ArrayXd theta = world.start;
  std::vector<ArrayXd> course{theta};
  for (int step = 1; step <= kSteps; ++step) {
    theta = log_softmax(theta - kRate * gradient(world, theta, flip)).col(0);
    if (step % kEvery == 0) course.push_back(theta);
  }
  return course;
}

/// Reward along the way with no flip, the sign, and the indicator; then the largest difference
/// between SePPO and SPIN in the control.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const Table rewards = random.normals(kActions, 1);
  const auto policy = [&](double strength) -> ArrayXd {
    return log_softmax(strength * rewards + 0.3 * random.normals(kActions, 1)).col(0);
  };
  const World world{.data = policy(1), .ref = policy(2), .start = policy(0)};
  std::vector<double> row;
  for (const Flip flip : {Flip::kNone, Flip::kSign, Flip::kIndicator}) {
    for (const ArrayXd& logps : train(world, flip)) row.push_back(expectation(logps, rewards));
  }
  Table covered = Table::Zero(kActions, 1);
  covered.topRows(kDataActions) = 1;
  const World worse{.data = covering(world.data, covered).col(0),
                    .ref = log_softmax(world.ref - kWorse * covered.col(0)).col(0),
                    .start = world.start};
  const auto seppo = train(worse, Flip::kSign), spin = train(worse, Flip::kNone);
  double difference = 0;
  for (std::size_t i = 0; i < spin.size(); ++i) {
    difference = std::max(difference, (seppo[i] - spin[i]).abs().maxCoeff());
  }
  row.push_back(difference);
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  std::vector<double> steps;
  for (int step = 0; step <= kSteps; step += kEvery) steps.push_back(step);
  const std::size_t points = steps.size();
  Report report{.data = {{"seppo-flip", {"case", "step", "reward", "low", "high"}}},
                .pictures = {{"seppo-flip",
                              {.title = "A reference that is better than the policy",
                               .x_label = "steps of gradient descent",
                               .y_label = "reward"}}}};
  add_curve(report, "no flip (SPIN)", steps, means(by_seed, 0, points));
  add_curve(report, "sign (SePPO)", steps, means(by_seed, points, points));
  add_curve(report, "indicator", steps, means(by_seed, 2 * points, points));
  report.verdicts = {
      below("without the flip reward falls: end less start",
            mean_difference(by_seed, points - 1, 0), 0),
      above("with it reward does not: end less start",
            mean_difference(by_seed, 2 * points - 1, points), 0),
      above("at the end the flip has more, by",
            mean_difference(by_seed, 2 * points - 1, points - 1), 0),
      below("control: a reference that is worse on the data: log distance to SPIN, largest of all "
            "steps",
            exactly(largest(by_seed, 3 * points, 1)), 1e-15)};
  return report;
}

}  // namespace prefopt::lab::seppo_flip
