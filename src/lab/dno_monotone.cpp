// SPDX-License-Identifier: Apache-2.0

// 2404.03715 (DNO): a round is the minimizer of dpo with soft labels sigmoid(r(y1) - r(y2)), r the
// win rate against pi_t, and pi_t the reference; it wins against pi_t with at least
// 1/2 + eta KL(pi_(t+1) || pi_t). Exact rounds on random cycles. Control: the first policy kept as
// the reference, which may lose to the policy of the round before.

#include <algorithm>
#include <cstdint>

#include "lab/experiments.h"
#include "lab/random_games.h"
#include "prefopt/exact/games.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab::dno_monotone {
namespace {

using namespace exact;

constexpr double kEta = 0.3;
constexpr int kRounds = 60;
constexpr double kRounding = 1e-12;

/// The minimizer of the registered loss on pairs of any policy that has all actions.
Table minimizer(const Table& last, const Preferences& preferences) {
  const Table equal = Table::Zero(last.rows(), 1);
  const Objective objective(
      ExactLoss(R"({"type": "dpo", "beta": 0.3, "use_label_probs": true})"),
      SoftmaxPolicy::tabular(last), last,
      population(log_softmax(equal), Preferences::bradley_terry(equal)),
      {.preferences = Preferences::bradley_terry(win_rates(last, preferences))});
  return objective.policy().logps(minimize(objective, Eigen::VectorXd::Zero(last.rows())).theta);
}

/// Log distance of a round to the loss's minimizer; for both references the win rates over the
/// round before; the least that a round has above the bound; for both the rounds that lose.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const Preferences cycle = random_cycle(random);
  const Table first = log_softmax(random.normals(3, 1));
  std::vector<double> row{
      (minimizer(first, cycle) - multiplicative_weights_step(first, cycle, 1 / kEta))
          .abs()
          .maxCoeff()};
  double least_slack = 1;
  std::vector<double> losses;
  for (const bool keeps_first : {false, true}) {
    Table pi = first;
    losses.push_back(0);
    for (int t = 0; t < kRounds; ++t) {
      const Table next = keeps_first ? optimum(first, win_rates(pi, cycle), kEta)
                                     : multiplicative_weights_step(pi, cycle, 1 / kEta);
      const double rate = win_rate(next, pi, cycle);
      row.push_back(rate);
      if (rate < 0.5 - kRounding) ++losses.back();
      if (!keeps_first) {
        least_slack = std::min(least_slack, rate - 0.5 - kEta * kl(next, pi));
      }
      pi = next;
    }
  }
  row.push_back(least_slack);
  row.insert(row.end(), losses.begin(), losses.end());
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  const std::size_t points = kRounds, ends = 1 + 2 * points;
  std::vector<double> rounds;
  for (int t = 1; t <= kRounds; ++t) rounds.push_back(t);
  Report report{.data = {{"dno-monotone", {"case", "round", "win rate", "low", "high"}}},
                .pictures = {{"dno-monotone",
                              {.title = "Exact rounds on random cycles",
                               .x_label = "round",
                               .y_label = "win rate over the round before"}}}};
  add_curve(report, "reference: the last policy", rounds, means(by_seed, 1, points));
  add_curve(report, "reference: the first policy", rounds, means(by_seed, 1 + points, points));
  report.verdicts = {
      below("the registered loss's minimizer is the round: log distance, largest",
            exactly(largest(by_seed, 0, 1)), 1e-8),
      above("a round wins by its bound 1/2 + η KL: least that it has above it",
            exactly(smallest(by_seed, ends, 1)), -kRounding),
      below("rounds that lose to the one before, of 60: largest",
            exactly(largest(by_seed, ends + 1, 1)), 0.5),
      above("control: with the first policy kept as the reference some lose: mean number of 60",
            mean(by_seed, ends + 2), 0)};
  return report;
}

}  // namespace prefopt::lab::dno_monotone
