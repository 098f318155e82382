// SPDX-License-Identifier: Apache-2.0

// 2310.17303: with a policy cloned from N_E demonstrations as the reference, the pairs that a gap
// epsilon takes fall as 1 / (epsilon^2 N_E). The bound is for a regularization lambda in proportion
// to epsilon N_E: the clone is within about A / N_E of the expert, so that a larger N_E allows a
// larger lambda at the same gap, and a larger lambda needs fewer pairs. Rewards are fitted to pairs
// within bounds (maximum likelihood), and the policy is pi_BC e^(r / lambda). Control:
// demonstrations of a policy that knows nothing, with the same lambda.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "lab/bounded_fit.h"
#include "lab/experiments.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab::demonstration_regularized {
namespace {

using namespace exact;
using Eigen::ArrayXd;

constexpr Index kActions = 6;
constexpr double kGap = 0.05;
constexpr double kExpertTemperature = 0.1;
constexpr double kMost = 0.5;  ///< rewards are in [-0.5, 0.5]
constexpr int kRepeats = 4;    ///< of each seed
const std::vector<double> kDemonstrations{4, 8, 16, 32};
const std::vector<double> kManyDemonstrations{16, 64, 256, 1024};
const std::vector<double> kPairCounts{8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};

double lambda_of(double demonstrations) { return kGap * demonstrations / (2 * kActions); }

/// Log-probs of the clone: counts plus one, which the paper's regularized likelihood amounts to.
Table cloned(const Table& expert, double demonstrations, Random& random) {
  Table counts = Table::Ones(kActions, 1);
  for (int i = 0; i < static_cast<int>(demonstrations); ++i) {
    ++counts(random.index(expert.col(0).exp()), 0);
  }
  return (counts / counts.sum()).log();
}

struct World {
  explicit World(std::uint64_t seed) : random(seed), rewards(kActions, 1) {
    for (Index y = 0; y < kActions; ++y) rewards(y, 0) = 0.7 * random.uniform() - kMost;
    rewards(0, 0) = kMost;
    expert = log_softmax(rewards / kExpertTemperature);
  }

  Random random;
  Table rewards, expert;
};

/// Gaps of the policies that are fitted to more and more pairs.
std::vector<double> gaps(World& world, const Table& clone, double lambda) {
  const Preferences preferences = Preferences::bradley_terry(world.rewards);
  BoundedFit fit(clone, lambda, kMost);
  ArrayXd f = ArrayXd::Zero(kActions);
  std::vector<double> result;
  double drawn = 0;
  for (const double count : kPairCounts) {
    for (; drawn < count; ++drawn) {
      const Index a = world.random.below(kActions);
      const Index b = (a + 1 + world.random.below(kActions - 1)) % kActions;
      const bool wins = world.random.uniform() < preferences(0, a, b);
      fit.add_pair(wins ? a : b, wins ? b : a);
    }
    f = fit.minimize(f);
    result.push_back(kMost - expectation(fit.logps(f), world.rewards));
  }
  return result;
}

/// Log distance of dpo's minimizer to the closed form; KL(expert || clone) for many demonstrations;
/// the gaps for each number of demonstrations, of the expert and of a policy that knows nothing.
std::vector<double> run_seed(int seed) {
  World world(static_cast<std::uint64_t>(seed));
  const Table clone = cloned(world.expert, kDemonstrations.back(), world.random);
  const Objective objective(
      ExactLoss(R"({"type": "dpo", "beta": 0.5})"), SoftmaxPolicy::tabular(clone), clone,
      population(log_softmax(Table::Zero(kActions, 1)), Preferences::bradley_terry(world.rewards)));
  const Table found =
      objective.policy().logps(minimize(objective, Eigen::VectorXd::Zero(kActions)).theta);
  std::vector<double> row{(found - optimum(clone, world.rewards, 0.5)).abs().maxCoeff()};
  for (const double count : kManyDemonstrations) {
    double sum = 0;
    for (int i = 0; i < kRepeats; ++i) {
      sum += kl(world.expert, cloned(world.expert, count, world.random));
    }
    row.push_back(sum / kRepeats);
  }
  const Table ignorant = log_softmax(Table::Zero(kActions, 1));
  for (const Table& teacher : {world.expert, ignorant}) {
    for (const double count : kDemonstrations) {
      std::vector<double> sums(kPairCounts.size(), 0);
      for (int i = 0; i < kRepeats; ++i) {
        const auto part = gaps(world, cloned(teacher, count, world.random), lambda_of(count));
        for (std::size_t k = 0; k < sums.size(); ++k) sums[k] += part[k] / kRepeats;
      }
      row.insert(row.end(), sums.begin(), sums.end());
    }
  }
  return row;
}

/// Pairs until the mean curve is below kGap, between counts on a line in log-log; the most if it
/// never is.
double pairs_needed(const std::vector<double>& curve) {
  for (std::size_t i = 0; i < curve.size(); ++i) {
    if (curve[i] > kGap) continue;
    if (i == 0) return kPairCounts[0];
    const double share = std::log(curve[i - 1] / kGap) / std::log(curve[i - 1] / curve[i]);
    return kPairCounts[i - 1] * std::pow(kPairCounts[i] / kPairCounts[i - 1], share);
  }
  return kPairCounts.back();
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  const std::size_t many = kManyDemonstrations.size(), points = kPairCounts.size();
  const std::size_t of_expert = 1 + many, of_ignorant = of_expert + kDemonstrations.size() * points;
  const auto needed = [&](std::size_t first, std::size_t i, const std::vector<std::size_t>& seeds) {
    return pairs_needed(mean_curve(by_seed, seeds, first + i * points, points));
  };
  const auto needed_exponent = [&](std::size_t first) {
    return bootstrap(by_seed.size(), [&](const std::vector<std::size_t>& seeds) {
      std::vector<double> xs, ys;
      for (std::size_t i = 0; i < kDemonstrations.size(); ++i) {
        xs.push_back(std::log(kDemonstrations[i]));
        ys.push_back(std::log(needed(first, i, seeds)));
      }
      return slope(xs, ys);
    });
  };
  Report report{
      .data = {{"demonstration-regularized", {"case", "N", "gap", "low", "high"}}},
      .pictures = {
          {"demonstration-regularized",
           {.title = "Gap in reward, clones of an expert and of a policy that knows nothing",
            .x_label = "pairs N",
            .y_label = "gap in reward",
            .log_x = true,
            .log_y = true}}}};
  for (const bool expert : {true, false}) {
    for (std::size_t i = 0; i < kDemonstrations.size(); ++i) {
      add_curve(report,
                (expert ? "expert, N_E = " : "ignorant, N_E = ") +
                    std::to_string(static_cast<int>(kDemonstrations[i])),
                kPairCounts,
                means(by_seed, (expert ? of_expert : of_ignorant) + i * points, points));
    }
  }
  report.verdicts = {
      below("dpo with the clone as reference ends at π_BC e^(r / λ): log distance, largest",
            exactly(largest(by_seed, 0, 1)), 1e-8),
      within("KL(expert ‖ clone) against N_E: exponent", exponent(by_seed, 1, kManyDemonstrations),
             -1, 0.2),
      below("pairs until the gap is 0.05 against N_E, where the bound says −1: exponent",
            needed_exponent(of_expert), -0.7),
      above(
          "control: with demonstrations of a policy that knows nothing they do not fall: exponent",
          needed_exponent(of_ignorant), -0.3)};
  return report;
}

}  // namespace prefopt::lab::demonstration_regularized
