// SPDX-License-Identifier: Apache-2.0

// 2407.00617 proposition 6: the minimizer of INPO's loss, ipo on two samples of pi_t and their own
// label with the reference pi_ref^(tau / eta) pi_t^(1 - tau / eta), is the exact round of online
// mirror descent. Populations of random games, the registered loss. Control: the best against the
// worst of K samples, as the paper trains, has another minimizer.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "lab/random_games.h"
#include "prefopt/exact/games.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab::inpo_theory {
namespace {

using namespace exact;

constexpr Index kActions = 4;
constexpr double kEta = 0.3, kTau = 0.1;
const std::vector<double> kCounts{2, 4, 8};

const std::string kHard = R"({"type": "ipo", "beta": 0.3, "length_normalized": false})";
const std::string kSoft =
    R"({"type": "ipo", "beta": 0.3, "length_normalized": false, "use_label_probs": true})";

struct World {
  World(const Preferences& preferences, Random& random)
      : preferences(preferences),
        ref(log_softmax(random.normals(kActions, 1))),
        last(log_softmax(random.normals(kActions, 1))) {}

  Table minimizer(const std::string& loss, const Pairs& pairs) const {
    const Table combined = log_softmax(kTau / kEta * ref + (1 - kTau / kEta) * last);
    const Objective objective(ExactLoss(loss), SoftmaxPolicy::tabular(combined), combined, pairs,
                              {.preferences = preferences});
    return objective.policy().logps(minimize(objective, Eigen::VectorXd::Zero(kActions)).theta);
  }
  Table round() const { return mirror_descent_step(last, ref, preferences, kTau, 1 / kEta); }

  Preferences preferences;
  Table ref, last;
};

/// The best of `count` samples against the worst, by reward; equal ones make no pair.
Pairs best_against_worst(const Table& logps, const Table& rewards, double count) {
  std::vector<Index> order(static_cast<std::size_t>(kActions));
  for (Index y = 0; y < kActions; ++y) order[static_cast<std::size_t>(y)] = y;
  std::sort(order.begin(), order.end(),
            [&](Index a, Index b) { return rewards(a, 0) < rewards(b, 0); });
  // The chance that all samples are from places first to last of the order.
  const auto all_within = [&](std::size_t first, std::size_t last) {
    double p = 0;
    for (std::size_t i = first; i <= last; ++i) p += std::exp(logps(order[i], 0));
    return std::pow(p, count);
  };
  Pairs pairs;
  std::vector<double> weights;
  for (std::size_t worst = 0; worst < order.size(); ++worst) {
    for (std::size_t best = worst + 1; best < order.size(); ++best) {
      const double inner = best - worst > 1 ? all_within(worst + 1, best - 1) : 0;
      pairs.prompts.push_back(0);
      pairs.chosen.push_back(order[best]);
      pairs.rejected.push_back(order[worst]);
      weights.push_back(all_within(worst, best) - all_within(worst + 1, best) -
                        all_within(worst, best - 1) + inner);
    }
  }
  pairs.weights =
      Eigen::Map<const Eigen::ArrayXd>(weights.data(), static_cast<Index>(weights.size()));
  pairs.weights /= pairs.weights.sum();
  return pairs;
}

/// Largest log distance to the exact round with hard and with soft labels; KL(round || minimizer)
/// of the best against the worst for each count; what the last has more of the best action.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const World general(random_game(random, kActions), random);
  const Pairs two = population(general.last, general.preferences);
  const auto distance = [&](const std::string& loss) {
    return (general.minimizer(loss, two) - general.round()).abs().maxCoeff();
  };
  std::vector<double> row{distance(kHard), distance(kSoft)};
  const Table rewards = random.normals(kActions, 1);
  const World ordered(Preferences::bradley_terry(rewards), random);
  const Table round = ordered.round();
  Index best = 0;
  rewards.col(0).maxCoeff(&best);
  double excess = 0;
  for (const double count : kCounts) {
    const Table found = ordered.minimizer(kHard, best_against_worst(ordered.last, rewards, count));
    row.push_back(kl(round, found));
    excess = std::exp(found(best, 0)) - std::exp(round(best, 0));
  }
  row.push_back(excess);
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  const std::size_t points = kCounts.size();
  Report report{.data = {{"inpo-theory", {"case", "K", "kl", "low", "high"}}},
                .pictures = {{"inpo-theory",
                              {.title = "Best against worst of K samples",
                               .x_label = "samples K",
                               .y_label = "KL(exact round ‖ minimizer), nats"}}}};
  add_curve(report, "best against worst", kCounts, means(by_seed, 2, points));
  report.verdicts = {
      below("two samples, their own label: log distance to the exact round, largest",
            exactly(largest(by_seed, 0, 1)), 1e-8),
      below("the same with soft labels: largest", exactly(largest(by_seed, 1, 1)), 1e-8),
      above("control: best against worst of 8: KL to the exact round", mean(by_seed, 1 + points),
            0.01),
      above("control: it asks for more of the best action: by", mean(by_seed, 2 + points), 0)};
  return report;
}

}  // namespace prefopt::lab::inpo_theory
