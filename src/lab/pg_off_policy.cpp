// SPDX-License-Identifier: Apache-2.0

// 2501.12599 (Kimi k1.5) section 2.3.2: the squared loss (r − b − τ log(π / π_i))² / (2τ), with
// the soft mean b, has its minimum at π_i e^(r / τ) / Z whoever wrote the completions. One prompt,
// completions of another policy than the one that is trained. Control: the policy gradient on the
// same completions without a ratio.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "lab/experiments.h"
#include "lab/kl_bandit.h"
#include "lab/token_steps.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"
#include "prefopt/objectives/advantages/group_mean.h"
#include "prefopt/objectives/advantages/soft_mean.h"

namespace prefopt::lab::pg_off_policy {
namespace {

using Eigen::ArrayXd;
using Eigen::Index;
using exact::Random;

/// How often each action is among the completions of a group, by which a baseline is exact.
using Counts = std::vector<std::int64_t>;

ArrayXd shares(const Counts& counts) {
  ArrayXd p(static_cast<Index>(counts.size()));
  for (Index i = 0; i < p.size(); ++i) {
    p[i] = static_cast<double>(counts[static_cast<std::size_t>(i)]);
  }
  return p / p.sum();
}

struct Instance {
  Counts ref, behaviour;
  ArrayXd rewards;
};

/// Returns the advantage of each action in a group that has the actions as often as `counts` says.
ArrayXd advantages_in(const Advantage& advantage, const Counts& counts, const ArrayXd& rewards) {
  std::vector<Index> drawn;
  std::vector<Index> first;
  for (std::size_t action = 0; action < counts.size(); ++action) {
    first.push_back(static_cast<Index>(drawn.size()));
    drawn.insert(drawn.end(), static_cast<std::size_t>(counts[action]), static_cast<Index>(action));
  }
  RolloutStep step = listed_step(std::vector<std::int64_t>(drawn.size(), 1), rewards(drawn));
  std::fill(step.groups.begin(), step.groups.end(), 0);
  return advantage.of(step)(first);
}

enum : std::size_t { kSoftMean, kWithRatio, kMean, kSoftMeanOfData, kNoRatio, kMethods };
const std::vector<std::string> kNames{
    "squared loss, soft mean", "policy gradient with the ratio", "squared loss, mean of the data",
    "squared loss, soft mean of the data", "control: policy gradient without the ratio"};

/// Where each method ends.
std::vector<ArrayXd> ends(const Instance& of) {
  constexpr double kTau = kKlCoefficient;
  const TokenObjective regress({.rule = R"({"kind": "regress", "tau": 0.5})",
                                .level = RatioLevel::kSequenceSum,
                                .aggregation = Aggregation::kSequenceSum});
  const TokenObjective gradient({.aggregation = Aggregation::kSequenceSum,
                                 .kl = {.estimator = KlEstimator::kExact, .coefficient = kTau}});
  const ArrayXd behaviour = shares(of.behaviour);
  KlBandit bandit{.ref = shares(of.ref).log(), .rewards = of.rewards, .behaviour = behaviour.log()};
  const Walk by_data{.rate = 0.2, .steps = 400, .preconditioner = behaviour};
  const Walk by_policy{.rate = 0.1, .steps = 600};
  const Advantage soft_mean = SoftMean({.tau = kTau});

  std::vector<ArrayXd> all(kMethods);
  const auto fit = [&](const Advantage& advantage, const Counts& counts) {
    KlBandit with = bandit;
    with.old = bandit.ref;
    with.advantages = advantages_in(advantage, counts, of.rewards);
    return walk(regress, with, by_data);
  };
  all[kSoftMean] = fit(soft_mean, of.ref);
  all[kMean] = fit(GroupMean(), of.behaviour);
  all[kSoftMeanOfData] = fit(soft_mean, of.behaviour);
  all[kNoRatio] = walk(gradient, bandit, by_policy);
  bandit.old = bandit.behaviour;
  all[kWithRatio] = walk(gradient, bandit, by_policy);
  return all;
}

Instance four_actions_off_policy() {
  return {.ref = {4, 3, 2, 1}, .behaviour = {1, 2, 3, 4}, .rewards = four_actions().rewards};
}

ArrayXd optimum_of(const Instance& of) {
  return exact::optimum(shares(of.ref).log(), of.rewards, kKlCoefficient).col(0);
}

/// Log distance of each method's end to the optimum, then KL to it.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  constexpr Index kActions = 4;
  const auto counts = [&] {
    Counts drawn(kActions);
    for (auto& count : drawn) count = 2 + random.below(8);
    return drawn;
  };
  const Counts ref = counts(), behaviour = counts();
  const Instance of{ref, behaviour,
                    ArrayXd::NullaryExpr(kActions, [&] { return random.uniform(); })};
  const ArrayXd optimum = optimum_of(of);
  std::vector<double> row(2 * kMethods);
  const auto all = ends(of);
  for (std::size_t m = 0; m < kMethods; ++m) {
    row[m] = (all[m] - optimum).abs().maxCoeff();
    row[kMethods + m] = exact::kl(all[m], optimum);
  }
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  constexpr Index kBest = 2;
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  Report report{.data = {{"pg-off-policy-ends", {"method", "p1", "p2", "p3", "p4"}},
                         {"pg-off-policy", {"case", "place", "kl", "low", "high"}}},
                .pictures = {{"pg-off-policy",
                              {.title = "Completions of another policy: where training ends",
                               .x_label = "method, in the order of the legend",
                               .y_label = "KL to the optimum, nats"}}}};
  const Instance four = four_actions_off_policy();
  const auto all = ends(four);
  for (std::size_t m = 0; m < kMethods; ++m) {
    const ArrayXd p = all[m].exp();
    report.data[0].rows.push_back({kNames[m], p[0], p[1], p[2], p[3]});
    add_curve(report, kNames[m], {static_cast<double>(m)}, {mean(by_seed, kMethods + m)});
    report.pictures[0].chart.series.back().style = detail::Series::Style::kPoints;
  }
  const auto best = [&](std::size_t m) { return exactly(std::exp(all[m][kBest])); };
  report.verdicts = {
      below("the squared loss with the soft mean ends at the optimum: log distance, largest",
            exactly(largest(by_seed, kSoftMean, 1)), 1e-8),
      within("four actions: probability of the best", best(kSoftMean),
             std::exp(optimum_of(four)[kBest]), 1e-10),
      below("the policy gradient with the ratio does: largest",
            exactly(largest(by_seed, kWithRatio, 1)), 1e-8),
      below("the squared loss with the mean of the data does: largest",
            exactly(largest(by_seed, kMean, 1)), 1e-8),
      below("with the soft mean of the data: largest",
            exactly(largest(by_seed, kSoftMeanOfData, 1)), 1e-8),
      above("control: the policy gradient without the ratio does not: KL to the optimum",
            mean(by_seed, kMethods + kNoRatio), 0.01),
      within("control, four actions: probability of the best", best(kNoRatio), 0.40151354333738,
             1e-10),
      above("its KL to the optimum less that of the mean of the data: by",
            mean_difference(by_seed, kMethods + kNoRatio, kMethods + kMean), 0)};
  return report;
}

}  // namespace prefopt::lab::pg_off_policy
