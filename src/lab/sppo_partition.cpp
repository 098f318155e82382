// SPDX-License-Identifier: Apache-2.0

// 2405.00675 (SPPO): a round approximates multiplicative weights; its squared loss puts the
// constant eta / 2 in the place of log Z. log Z is eta / 2 + O(eta^2), and the normalized minimizer
// corrects a constant to first order, so that the policies differ by O(eta^3) and their KL grows
// as eta^6. Exact rounds on random games, the registered loss. Control: log Z in the place of the
// constant, where the loss has no gradient at multiplicative weights.

#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "lab/random_games.h"
#include "prefopt/exact/games.h"
#include "prefopt/exact/loss.h"
#include "prefopt/exact/measures.h"

namespace prefopt::lab::sppo_partition {
namespace {

using namespace exact;
using Eigen::ArrayXd;

constexpr Index kActions = 4;
const std::vector<double> kSteps{0.25, 0.5, 1, 2, 4};
constexpr std::size_t kSmallSteps = 3;  ///< those that the exponent is of
constexpr int kRounds = 3;              ///< the paper's

/// Largest derivative in the logits of `policy` of the registered loss on pairs of samples of
/// `last`.
double gradient(const Table& policy, const Table& last, const ArrayXd& win_rates, double step) {
  constexpr Index kRows = kActions * kActions;
  // Row i compares action i / kActions with action i % kActions.
  const auto firsts = [](const ArrayXd& of) -> ArrayXd {
    return ArrayXd::NullaryExpr(kRows, [&](Index i) { return of[i / kActions]; });
  };
  const auto seconds = [](const ArrayXd& of) -> ArrayXd {
    return ArrayXd::NullaryExpr(kRows, [&](Index i) { return of[i % kActions]; });
  };
  const ArrayXd p = last.col(0).exp();
  const ArrayXd weights = firsts(p) * seconds(p);
  ExactPairLogps in;
  in.chosen_logps = firsts(policy.col(0));
  in.rejected_logps = seconds(policy.col(0));
  in.ref_chosen_logps = firsts(last.col(0));
  in.ref_rejected_logps = seconds(last.col(0));
  in.chosen_win_rates = firsts(win_rates);
  in.rejected_win_rates = seconds(win_rates);
  in.weights = ArrayXd::Ones(kRows);
  in.totals = {.pairs = kRows};
  const ExactLoss loss(R"({"type": "sppo", "soft": true, "beta": )" + std::to_string(1 / step) +
                       "}");
  const ExactLossOutput out = loss.evaluate(in);
  Table slopes = Table::Zero(kActions, 1);
  for (Index i = 0; i < kRows; ++i) {  // a loss divides its gradients by the number of rows
    slopes(i / kActions, 0) += kRows * weights[i] * out.grad_chosen[i];
    slopes(i % kActions, 0) += kRows * weights[i] * out.grad_rejected[i];
  }
  return SoftmaxPolicy::tabular(last).pullback(policy, slopes).cwiseAbs().maxCoeff();
}

/// KL(multiplicative weights || SPPO) after `rounds` of each.
double drift(const Table& start, const Preferences& game, double step, int rounds) {
  Table weights = start, sppo = start;
  for (int t = 0; t < rounds; ++t) {
    weights = multiplicative_weights_step(weights, game, step);
    sppo = sppo_step(sppo, game, step);
  }
  return kl(weights, sppo);
}

/// KL after one round for each step; after kRounds at 0.1 and at 4; gradients at step 4: at SPPO's
/// round, at multiplicative weights, and there with log Z.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const Preferences game = random_game(random, kActions);
  const Table start = log_softmax(random.normals(kActions, 1));
  std::vector<double> row;
  for (const double step : kSteps) row.push_back(drift(start, game, step, 1));
  const double step = kSteps.back();
  row.push_back(drift(start, game, 0.1, kRounds));
  row.push_back(drift(start, game, step, kRounds));
  const ArrayXd rates = win_rates(start, game).col(0);
  const double log_z = std::log((start.col(0) + step * rates).exp().sum());
  const Table weights = multiplicative_weights_step(start, game, step);
  row.push_back(gradient(sppo_step(start, game, step), start, rates, step));
  row.push_back(gradient(weights, start, rates, step));
  row.push_back(gradient(weights, start, rates - log_z / step + 0.5, step));
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  const std::size_t points = kSteps.size();
  const std::vector<double> small(kSteps.begin(), kSteps.begin() + kSmallSteps);
  Report report{.data = {{"sppo-partition", {"case", "eta", "kl", "low", "high"}}},
                .pictures = {{"sppo-partition",
                              {.title = "One round of SPPO",
                               .x_label = "step η",
                               .y_label = "KL(multiplicative weights ‖ SPPO), nats",
                               .log_x = true,
                               .log_y = true}}}};
  add_curve(report, "one round", kSteps, means(by_seed, 0, points));
  report.verdicts = {
      below("the registered loss has no gradient at SPPO's round: largest",
            exactly(largest(by_seed, points + 2, 1)), 1e-9),
      within("KL to multiplicative weights against η, up to 1: exponent",
             exponent(by_seed, 0, small), 6, 0.5),
      below("at η = 0.1 three rounds stay together: KL, largest",
            exactly(largest(by_seed, points, 1)), 1e-8),
      above("at η = 4 they part: KL after three rounds", mean(by_seed, points + 1), 1e-5),
      above("there the loss has a gradient at multiplicative weights: smallest",
            exactly(smallest(by_seed, points + 3, 1)), 1e-6),
      below("control: with log Z in the place of the constant it has none: largest",
            exactly(largest(by_seed, points + 4, 1)), 1e-9)};
  return report;
}

}  // namespace prefopt::lab::sppo_partition
