// SPDX-License-Identifier: Apache-2.0

// 2401.04056 (SPO): self-play by multiplicative weights, pi_(t+1) ~ pi_t e^(step P(. beats pi_t)).
// The average of the iterates tends to the minimax winner also where preferences are a cycle: it
// loses no more than the mean regret, sqrt(D / (2 T)) at the step sqrt(8 D / T), D the largest
// -log pi_1. The last iterate does not: KL(winner || pi_t) never falls. Exact rounds on random
// cycles. Control: Bradley-Terry preferences, where the last iterate tends to the winner.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "lab/random_games.h"
#include "prefopt/exact/games.h"
#include "prefopt/exact/measures.h"

namespace prefopt::lab::self_play_average {
namespace {

using namespace exact;

struct SelfPlay {
  Table last, average;      ///< log-probs
  double least_growth = 0;  ///< of KL(winner || pi_t) in one round
};

SelfPlay play(const Preferences& preferences, const Table& start, double step, int rounds) {
  const Table winner = minimax_winner(preferences);
  Table pi = start, sum = Table::Zero(start.rows(), start.cols());
  double distance = kl(winner, pi), least_growth = 1;
  for (int t = 0; t < rounds; ++t) {
    sum += pi.exp();
    pi = multiplicative_weights_step(pi, preferences, step);
    const double next = kl(winner, pi);
    least_growth = std::min(least_growth, next - distance);
    distance = next;
  }
  return {pi, (sum / rounds).log(), least_growth};
}

/// For each T the exploitability of the average, of the last iterate, of the last on
/// Bradley-Terry preferences, and the average's over its bound; then the least growth of KL.
std::vector<double> run_seed(int seed, const std::vector<double>& horizons) {
  Random random(static_cast<std::uint64_t>(seed));
  const Preferences cycle = random_cycle(random);
  const Table start = log_softmax(random.normals(3, 1));
  Table rewards{{1}, {0.5}, {0}};
  for (Index y = 0; y < rewards.rows(); ++y) rewards(y, 0) += 0.3 * random.uniform();
  const Preferences ordered = Preferences::bradley_terry(rewards);
  const double depth = -start.minCoeff();
  std::vector<double> averages, lasts, controls, shares;
  double least_growth = 1;
  for (const double horizon : horizons) {
    const double step = std::sqrt(8 * depth / horizon);
    const auto rounds = static_cast<int>(horizon);
    const SelfPlay end = play(cycle, start, step, rounds);
    averages.push_back(exploitability(end.average, cycle));
    lasts.push_back(exploitability(end.last, cycle));
    controls.push_back(exploitability(play(ordered, start, step, rounds).last, ordered));
    shares.push_back(averages.back() / std::sqrt(depth / (2 * horizon)));
    least_growth = std::min(least_growth, end.least_growth);
  }
  std::vector<double> row;
  for (const auto& part : {averages, lasts, controls, shares}) {
    row.insert(row.end(), part.begin(), part.end());
  }
  row.push_back(least_growth);
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  std::vector<double> horizons{10, 30, 100, 300, 1000};
  if (!settings.quick) horizons.push_back(4000);
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, horizons); });
  const std::size_t points = horizons.size();
  Report report{.data = {{"self-play-average", {"case", "T", "exploitability", "low", "high"}}},
                .pictures = {{"self-play-average",
                              {.title = "Self-play without a reference",
                               .x_label = "rounds T",
                               .y_label = "max P(y beats π) − 1/2",
                               .log_x = true,
                               .log_y = true}}}};
  add_curve(report, "cycle, average of the iterates", horizons, means(by_seed, 0, points));
  add_curve(report, "cycle, last iterate", horizons, means(by_seed, points, points));
  add_curve(report, "Bradley–Terry, last iterate", horizons, means(by_seed, 2 * points, points));
  report.verdicts = {
      below("the average's exploitability over its bound, largest of all T",
            exactly(largest(by_seed, 3 * points, points)), 1),
      below("and against T, where the bound allows −0.5: exponent", exponent(by_seed, 0, horizons),
            -0.4),
      above("the last iterate's does not fall: at the last T", mean(by_seed, 2 * points - 1), 0.05),
      above("KL(winner ‖ π_t) grows in every round: smallest growth",
            exactly(smallest(by_seed, 4 * points, 1)), -1e-12),
      below("control: on Bradley–Terry preferences the last iterate's is small at the last T",
            mean(by_seed, 3 * points - 1), 0.01)};
  return report;
}

}  // namespace prefopt::lab::self_play_average
