// SPDX-License-Identifier: Apache-2.0

// 2403.00409: with log-linear policies, features that the data cover,
// and labels flipped at a known rate eps, rDPO's error is O(1/(1 - 2 eps) sqrt(d / n)), in the norm
// of the pairs' feature covariance; the gap in reward is bounded by that error times a coverage
// constant. DPO on flipped labels tends to another policy, so its error stops falling. Control:
// without flips it does not stop.

#include <fmt/format.h>

#include <cmath>

#include "lab/experiments.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab::rdpo_rates {
namespace {

using namespace exact;
using Eigen::MatrixXd;
using Eigen::VectorXd;

constexpr Index kPrompts = 24, kActions = 4;
constexpr double kBeta = 0.5;
constexpr double kRewardSpread = 1;  ///< standard deviation of the reward over actions

struct Point {
  double n, d, flips;
};

constexpr Point kBase{8000, 8, 0.2};

struct Sweep {
  std::string name;
  std::vector<double> xs;
  std::vector<Point> points;
};

std::vector<Sweep> sweeps(bool quick) {
  Sweep n{"n", {}, {}}, d{"d", {}, {}}, flips{"1/(1-2eps)", {}, {}};
  for (double count = 2000; count <= (quick ? 32000 : 128000); count *= quick ? 4 : 2) {
    n.xs.push_back(count);
    n.points.push_back({count, kBase.d, kBase.flips});
  }
  for (const double size : quick ? std::vector<double>{4, 32} : std::vector<double>{4, 8, 16, 32}) {
    d.xs.push_back(size);
    d.points.push_back({kBase.n, size, kBase.flips});
  }
  for (const double rate :
       quick ? std::vector<double>{0.1, 0.4} : std::vector<double>{0.1, 0.2, 0.3, 0.4}) {
    flips.xs.push_back(1 / (1 - 2 * rate));
    flips.points.push_back({8 * kBase.n, kBase.d, rate});
  }
  return {n, d, flips};
}

/// A world in which the log-linear class holds the optimum: theta* is the parameter of the best
/// policy, and beta phi . theta* its reward.
struct World {
  World(std::uint64_t seed, double d)
      : random(seed), ref(log_softmax(Table::Zero(kActions, kPrompts))) {
    const auto size = static_cast<Index>(d);
    features = random.normals(kActions * kPrompts, size).matrix() / std::sqrt(d);
    theta = random.normals(size, 1).matrix();
    const VectorXd values = kBeta * features * theta;
    const double scale = kRewardSpread / std::sqrt(values.squaredNorm() / values.size());
    theta *= scale;
    rewards = (scale * values).reshaped(kActions, kPrompts).array();
    covariance = MatrixXd::Zero(size, size);
    const Pairs pairs = population(ref, Preferences::bradley_terry(rewards));
    for (Index i = 0; i < pairs.size(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const VectorXd gap = features.row(kActions * pairs.prompts[at] + pairs.chosen[at]) -
                           features.row(kActions * pairs.prompts[at] + pairs.rejected[at]);
      covariance += pairs.weights[i] * gap * gap.transpose();
    }
  }

  Random random;
  Table ref, rewards;
  MatrixXd features, covariance;
  VectorXd theta;
};

constexpr std::size_t kMeasures = 3;
const std::vector<std::string> kMeasureNames{"error", "reward_gap", "regularized_gap"};

/// Returns the error in the covariance's norm, the gap in reward (of either sign), and that in
/// regularized reward.
std::vector<double> measure(const World& world, const Pairs& pairs, const std::string& loss) {
  const SoftmaxPolicy policy = SoftmaxPolicy::log_linear(world.ref, world.features);
  const Objective objective(ExactLoss(loss), policy, world.ref, pairs);
  const VectorXd found =
      minimize(objective, VectorXd::Zero(policy.parameters()), {.gradient_tolerance = 1e-9}).theta;
  const VectorXd difference = found - world.theta;
  const Table logps = policy.logps(found), best = policy.logps(world.theta);
  return {std::sqrt(difference.dot(world.covariance * difference)),
          expectation(best, world.rewards) - expectation(logps, world.rewards),
          suboptimality_gap(logps, world.ref, world.rewards, kBeta)};
}

const std::vector<std::string> kLosses{"robust_dpo", "dpo", "cdpo"};

std::string config_of(const std::string& loss, double flips) {
  if (loss == "robust_dpo") {
    return fmt::format(R"({{"type": "robust_dpo", "beta": {}, "label_smoothing": {}}})", kBeta,
                       flips);
  }
  return fmt::format(R"({{"type": "dpo", "beta": {}, "label_smoothing": {}}})", kBeta,
                     loss == "cdpo" ? flips : 0);
}

void append(std::vector<double>& row, const std::vector<double>& more) {
  row.insert(row.end(), more.begin(), more.end());
}

/// For each loss, measure, sweep and point, in this order, so that a sweep is side by side; then
/// the errors of DPO over n without flips.
std::vector<double> run_seed(int seed, const std::vector<Sweep>& all) {
  std::vector<double> by_point;  // sweep, point, loss, measure
  std::vector<double> clean;
  std::size_t points = 0;
  for (const Sweep& sweep : all) {
    for (const Point& point : sweep.points) {
      World world(static_cast<std::uint64_t>(seed), point.d);
      const Preferences preferences = Preferences::bradley_terry(world.rewards);
      const auto draw = [&](double flips) {
        return merged(sample(population(world.ref, preferences.flipped(flips)),
                             static_cast<Index>(point.n), world.random));
      };
      const Pairs pairs = draw(point.flips);
      for (const std::string& loss : kLosses) {
        append(by_point, measure(world, pairs, config_of(loss, point.flips)));
      }
      if (sweep.name == "n") clean.push_back(measure(world, draw(0), config_of("dpo", 0))[0]);
      ++points;
    }
  }
  std::vector<double> row;
  for (std::size_t k = 0; k < kLosses.size() * kMeasures; ++k) {
    for (std::size_t p = 0; p < points; ++p) {
      row.push_back(by_point[p * kLosses.size() * kMeasures + k]);
    }
  }
  append(row, clean);
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const std::vector<Sweep> all = sweeps(settings.quick);
  const auto by_seed = for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, all); });
  std::size_t points = 0;
  for (const Sweep& sweep : all) points += sweep.points.size();
  const auto column = [&](std::size_t loss, std::size_t measure, std::size_t sweep) {
    std::size_t first = (loss * kMeasures + measure) * points;
    for (std::size_t s = 0; s < sweep; ++s) first += all[s].points.size();
    return first;
  };

  Report report{
      .data = {{"rdpo-rates", {"against", "x", "loss", "measure", "rms", "low", "high"}}}};
  for (std::size_t s = 0; s < all.size(); ++s) {
    detail::Chart chart{.title = "Error of the parameters against " + all[s].name,
                        .x_label = all[s].name,
                        .y_label = "‖θ − θ*‖ in the norm of the pairs, root mean square",
                        .log_x = true,
                        .log_y = true};
    for (std::size_t loss = 0; loss < kLosses.size(); ++loss) {
      detail::Series series{.name = kLosses[loss]};
      for (std::size_t measure = 0; measure < kMeasures; ++measure) {
        for (std::size_t p = 0; p < all[s].points.size(); ++p) {
          const Estimate rms = root_mean_square(by_seed, column(loss, measure, s) + p);
          report.data[0].rows.push_back({all[s].name, all[s].xs[p], kLosses[loss],
                                         kMeasureNames[measure], rms.value, rms.low, rms.high});
          if (measure != 0) continue;
          add_point(series, all[s].xs[p], rms);
        }
      }
      chart.series.push_back(std::move(series));
    }
    const std::vector<std::string> files{"rdpo-rates-n", "rdpo-rates-d", "rdpo-rates-flips"};
    report.pictures.push_back({files[s], std::move(chart)});
  }

  const auto fit = [&](std::size_t loss, std::size_t measure, std::size_t sweep) {
    return exponent(by_seed, column(loss, measure, sweep), all[sweep].xs);
  };
  const auto near = [](const Estimate& e, double target, double tolerance) {
    return std::abs(e.value - target) < tolerance;
  };
  const Estimate error_n = fit(0, 0, 0), gap_n = fit(0, 1, 0), regularized_n = fit(0, 2, 0);
  const Estimate error_d = fit(0, 0, 1), gap_d = fit(0, 1, 1);
  const Estimate error_flips = fit(0, 0, 2);
  const Estimate dpo_n = fit(1, 0, 0);
  const Estimate clean_n = exponent(by_seed, kLosses.size() * kMeasures * points, all[0].xs);
  report.verdicts = {
      {"rDPO's error against n: exponent", error_n, "−0.5 within 0.1", near(error_n, -0.5, 0.1)},
      {"rDPO's gap in reward against n: exponent", gap_n, "−0.5 within 0.15",
       near(gap_n, -0.5, 0.15)},
      {"rDPO's gap in regularized reward against n, of second order in the error: exponent",
       regularized_n, "−1 within 0.2", near(regularized_n, -1, 0.2)},
      {"rDPO's error against d: exponent", error_d, "0.5 within 0.15", near(error_d, 0.5, 0.15)},
      {"rDPO's gap in reward against d, which the paper's bound lets grow as d^0.5: exponent",
       gap_d, "0.5 within 0.15", near(gap_d, 0.5, 0.15)},
      {"rDPO's error against 1/(1−2ε): exponent", error_flips, "1 within 0.2",
       near(error_flips, 1, 0.2)},
      {"DPO's error on flipped labels stops falling: exponent in n", dpo_n, "above −0.15",
       dpo_n.low > -0.15},
      {"control: without flips DPO's error falls: exponent in n", clean_n, "−0.5 within 0.1",
       near(clean_n, -0.5, 0.1)}};
  return report;
}

}  // namespace prefopt::lab::rdpo_rates
