// SPDX-License-Identifier: Apache-2.0

// 2410.06293 (accelerated preference optimization): after each round of DPO the policy is
// extrapolated, pi_(t+1) ~ hat_(t+1) (hat_(t+1) / hat_t)^alpha. On Bradley-Terry preferences exact
// rounds give hat_T ~ ref e^(c_T r / beta) with c_(T+1) = c_T + 1 + alpha (c_T - c_(T-1)), whose
// increments tend to 1 / (1 - alpha): the gap falls as if there were 1 / (1 - alpha) times the
// rounds. Controls: rounds with a smaller beta and no extrapolation, whose policy is the same;
// sampled labels, whose noise the exponents predict as well.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "prefopt/exact/games.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab::apo_rounds {
namespace {

using namespace exact;

constexpr Index kActions = 5;
constexpr double kBeta = 2;
constexpr int kRounds = 10, kNoisyRounds = 5;
constexpr Index kPairs = 300;  ///< a round with sampled labels
const std::vector<double> kAlphas{0, 0.3, 0.5};

/// The minimizer of the registered loss with reference `start`.
Table dpo_round(const Table& start, const Pairs& pairs, double beta) {
  const Objective objective(ExactLoss(fmt::format(R"({{"type": "dpo", "beta": {}}})", beta)),
                            SoftmaxPolicy::tabular(start), start, pairs);
  return objective.policy().logps(minimize(objective, Eigen::VectorXd::Zero(kActions)).theta);
}

/// c after 1 … rounds.
std::vector<double> exponents(double alpha, int rounds) {
  std::vector<double> cs{0};
  for (int t = 0; t < rounds; ++t) {
    const double before = cs.size() > 1 ? cs[cs.size() - 2] : 0;
    cs.push_back(cs.back() + 1 + alpha * (cs.back() - before));
  }
  return {cs.begin() + 1, cs.end()};
}

/// The policies after each round, on pairs_of(round).
template <class F>
std::vector<Table> rounds_of(const Table& ref, double alpha, double beta, int rounds,
                             F&& pairs_of) {
  std::vector<Table> policies{ref};
  for (int t = 0; t < rounds; ++t) {
    const Table& before = policies[policies.size() > 1 ? policies.size() - 2 : 0];
    const Table start = extrapolated(policies.back(), before, alpha);
    policies.push_back(dpo_round(start, pairs_of(t), beta));
  }
  return {policies.begin() + 1, policies.end()};
}

Table centered(const Table& values) { return values - values.mean(); }

/// Gaps in reward after each round for each alpha; largest log distance to the closed form; log
/// distance of the last round of alpha 0.5 to that of a smaller beta; root mean squares of the
/// errors of log-ratios with sampled labels: plain, alpha 0.5, a smaller beta.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const Table ref = log_softmax(random.normals(kActions, 1));
  const Table rewards = Table::NullaryExpr(kActions, 1, [&] { return random.uniform(); });
  const Preferences preferences = Preferences::bradley_terry(rewards);
  const Pairs law = population(log_softmax(Table::Zero(kActions, 1)), preferences);
  std::vector<double> row;
  double farthest = 0;
  Table fastest;
  for (const double alpha : kAlphas) {
    const auto policies = rounds_of(ref, alpha, kBeta, kRounds, [&](int) { return law; });
    const auto cs = exponents(alpha, kRounds);
    for (std::size_t t = 0; t < policies.size(); ++t) {
      row.push_back(rewards.maxCoeff() - expectation(policies[t], rewards));
      const Table closed = optimum(ref, rewards, kBeta / cs[t]);
      farthest = std::max(farthest, (policies[t] - closed).abs().maxCoeff());
    }
    fastest = policies.back();
  }
  row.push_back(farthest);
  const double alpha = kAlphas.back();
  const auto longer_beta = [&](int rounds) {
    return kBeta * rounds / exponents(alpha, rounds).back();
  };
  const auto longer = rounds_of(ref, 0, longer_beta(kRounds), kRounds, [&](int) { return law; });
  row.push_back((longer.back() - fastest).abs().maxCoeff());

  std::vector<Pairs> sampled;
  for (int t = 0; t < kNoisyRounds; ++t) sampled.push_back(merged(sample(law, kPairs, random)));
  const auto error = [&](double by_alpha, double beta, double c) {
    const auto policies = rounds_of(ref, by_alpha, beta, kNoisyRounds,
                                    [&](int t) { return sampled[static_cast<std::size_t>(t)]; });
    const Table off = centered(policies.back() - ref) - c / kBeta * centered(rewards);
    return std::sqrt(off.square().mean());
  };
  const double c = exponents(alpha, kNoisyRounds).back();
  row.push_back(error(0, kBeta, kNoisyRounds));
  row.push_back(error(alpha, kBeta, c));
  row.push_back(error(0, longer_beta(kNoisyRounds), c));
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  const std::size_t points = kRounds, ends = kAlphas.size() * points;
  std::vector<double> rounds;
  for (int t = 1; t <= kRounds; ++t) rounds.push_back(t);
  Report report{.data = {{"apo-rounds", {"case", "round", "gap", "low", "high"}}},
                .pictures = {{"apo-rounds",
                              {.title = "Exact rounds of DPO with extrapolation",
                               .x_label = "rounds",
                               .y_label = "gap in reward",
                               .log_y = true}}}};
  for (std::size_t i = 0; i < kAlphas.size(); ++i) {
    add_curve(report, fmt::format("α = {}", kAlphas[i]), rounds,
              means(by_seed, i * points, points));
  }
  const auto ratio = [&](std::size_t of, std::size_t over) {
    return bootstrap(by_seed.size(), [&](const std::vector<std::size_t>& seeds) {
      double above = 0, below = 0;
      for (const std::size_t seed : seeds) {
        above += by_seed[seed][of] * by_seed[seed][of];
        below += by_seed[seed][over] * by_seed[seed][over];
      }
      return std::sqrt(above / below);
    });
  };
  // A round of sampled labels adds independent noise, times what is left of the exponent's sum.
  double squares = 0;
  const auto weights = exponents(kAlphas.back(), kNoisyRounds);
  double last = 0;
  for (const double c : weights) {
    squares += (c - last) * (c - last);
    last = c;
  }
  const double by_rounds = std::sqrt(squares / kNoisyRounds);
  const double by_step = std::sqrt(squares * kNoisyRounds) / weights.back();
  report.verdicts = {
      below("the policies are ref e^(c r / β) with the exponents c of the recursion: log distance, "
            "largest",
            exactly(largest(by_seed, ends, 1)), 1e-6),
      above("gap after 10 rounds: that of α = 0 less that of α = 0.3",
            mean_difference(by_seed, points - 1, 2 * points - 1), 0),
      above("that of α = 0.3 less that of α = 0.5",
            mean_difference(by_seed, 2 * points - 1, 3 * points - 1), 0),
      below("control: a smaller β without extrapolation ends at the same policy: log distance, "
            "largest",
            exactly(largest(by_seed, ends + 1, 1)), 1e-6),
      within("sampled labels: error of α = 0.5 over that of plain rounds, as the exponents predict",
             ratio(ends + 3, ends + 2), by_rounds, 0.15),
      within("control: and over that of the smaller β", ratio(ends + 3, ends + 4), by_step, 0.05)};
  return report;
}

}  // namespace prefopt::lab::apo_rounds
