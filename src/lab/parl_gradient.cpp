// SPDX-License-Identifier: Apache-2.0

// 2406.15567 (SAIL, on PARL's bilevel problem): where pairs are the policy's own, the gradient of
// the expected dpo loss has a second part, E (loss) grad [log pi(y) + log pi(y')], by which the
// policy changes its data; online DPO drops it. Sums over all pairs of samples, compared with
// central differences of the expectation. Control: online DPO's part alone is another vector. What
// it is good for is asked of the policies that both descend to.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"
#include "prefopt/math/functions.h"

namespace prefopt::lab::parl_gradient {
namespace {

using namespace exact;
using Eigen::ArrayXd;

constexpr Index kActions = 5;
constexpr double kBeta = 0.5, kRate = 2;
constexpr int kSteps = 4000;

struct World {
  explicit World(std::uint64_t seed)
      : random(seed),
        ref(log_softmax(random.normals(kActions, 1))),
        rewards(random.normals(kActions, 1)),
        preferences(Preferences::bradley_terry(rewards)) {}

  Random random;
  Table ref, rewards;
  Preferences preferences;
};

struct Gradients {
  double value = 0;  ///< E of the loss over two samples and their label
  ArrayXd of_loss, of_data;
};

Gradients gradients(const World& world, const ArrayXd& theta) {
  const Table logps = log_softmax(theta);
  const ArrayXd p = logps.col(0).exp(), ratios = kBeta * (logps - world.ref).col(0);
  Gradients result;
  ArrayXd loss_slopes = ArrayXd::Zero(kActions), data_slopes = ArrayXd::Zero(kActions);
  for (Index w = 0; w < kActions; ++w) {
    for (Index l = 0; l < kActions; ++l) {
      // Both orders of a pair: w wins as first and as second.
      const double weight = 2 * p[w] * p[l] * world.preferences(0, w, l);
      const double margin = ratios[w] - ratios[l], loss = -math::log_sigmoid(margin);
      result.value += weight * loss;
      const double push = weight * kBeta * math::sigmoid(-margin);
      loss_slopes[w] -= push;
      loss_slopes[l] += push;
      data_slopes[w] += weight * loss;
      data_slopes[l] += weight * loss;
    }
  }
  const auto in_theta = [&](const ArrayXd& slopes) -> ArrayXd { return slopes - p * slopes.sum(); };
  // The weights of a pair, of two orders, sum to 2.
  result.value /= 2;
  result.of_loss = in_theta(loss_slopes) / 2;
  result.of_data = in_theta(data_slopes) / 2;
  return result;
}

ArrayXd central_differences(const World& world, const ArrayXd& theta) {
  constexpr double kWidth = 1e-3;
  ArrayXd result(kActions), moved = theta;
  for (Index i = 0; i < kActions; ++i) {
    const auto value_at = [&](double widths) {
      moved[i] = theta[i] + widths * kWidth;
      return gradients(world, moved).value;
    };
    result[i] = (8 * (value_at(1) - value_at(-1)) - value_at(2) + value_at(-2)) / (12 * kWidth);
    moved[i] = theta[i];
  }
  return result;
}

/// By natural gradients, in which rare actions are not slower than others; they end where gradients
/// do. The floor is for actions that the whole gradient leaves for good.
ArrayXd descend_from_reference(const World& world, double weight_of_data) {
  constexpr double kFloor = 1e-6;
  ArrayXd logps = world.ref.col(0);
  for (int step = 0; step < kSteps; ++step) {
    const Gradients at = gradients(world, logps);
    logps -= kRate * (at.of_loss + weight_of_data * at.of_data) / (logps.exp() + kFloor);
    logps = log_softmax(logps).col(0);
  }
  return logps;
}

/// Relative errors of the whole gradient and of online DPO's part; values of the objective and gaps
/// in regularized reward that online DPO and the whole gradient end at.
std::vector<double> run_seed(int seed) {
  World world(static_cast<std::uint64_t>(seed));
  const ArrayXd theta = world.random.normals(kActions, 1).col(0);
  const Gradients at = gradients(world, theta);
  const ArrayXd truth = central_differences(world, theta);
  const auto error = [&](const ArrayXd& of) {
    return (of - truth).matrix().norm() / truth.matrix().norm();
  };
  std::vector<double> row{error(at.of_loss + at.of_data), error(at.of_loss)};
  for (const double weight : {0.0, 1.0}) {
    const ArrayXd end = descend_from_reference(world, weight);
    row.push_back(gradients(world, end).value);
    row.push_back(suboptimality_gap(log_softmax(end), world.ref, world.rewards, kBeta));
  }
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  Report report{.data = {{"parl-gradient", {"case", "x", "mean", "low", "high"}}},
                .pictures = {{"parl-gradient",
                              {.title = "Where the two gradients end",
                               .x_label = "expected dpo loss",
                               .y_label = "gap in regularized reward"}}}};
  for (const bool whole : {false, true}) {
    const std::size_t column = whole ? 4 : 2;
    add_curve(report, whole ? "whole gradient" : "online DPO", {mean(by_seed, column).value},
              {mean(by_seed, column + 1)});
    report.pictures.back().chart.series.back().style = detail::Series::Style::kPoints;
  }
  report.verdicts = {
      below("both parts are the gradient of the expected loss: relative error, largest",
            exactly(largest(by_seed, 0, 1)), 1e-8),
      above("control: online DPO's part alone is not: relative error, smallest",
            exactly(smallest(by_seed, 1, 1)), 1e-3),
      above("the whole gradient ends at a lower expected loss: by", mean_difference(by_seed, 2, 4),
            0),
      below("online DPO ends at the optimum of the regularized reward: its gap, largest",
            exactly(largest(by_seed, 3, 1)), 1e-6),
      above("the whole gradient has more regularized reward than online DPO: by",
            mean_difference(by_seed, 3, 5), 0)};
  return report;
}

}  // namespace prefopt::lab::parl_gradient
