// SPDX-License-Identifier: Apache-2.0

// 2406.01462 with a transformer: where pairs cover a part of the strings only, DPO's KL(pi || ref)
// grows the rarer the others are under the reference, HyPO's stays within log 2 / lambda, and its
// reward is higher. HyPO's samples are the network's own, as in any training. New pairs of the
// covered strings at every step, so that few data are not what is measured. The same reference goes
// to the log-linear class that holds the optimum. Of a network the policy as it is counts, where
// what is no string at all is one more outcome without data, so that its KL is a lower bound; given
// a string it is shown as well. Control: pairs that cover all strings.

#include <algorithm>
#include <cmath>
#include <iterator>

#include "lab/experiments.h"
#include "lab/neural_task.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab {
namespace {

using namespace exact;

constexpr double kLambda = 0.5;
constexpr double kDisappointment = 4;
constexpr int kSteps = 400;
constexpr Index kBatch = 32;

struct Case {
  std::string name, loss;
  bool all_covered;
};

const std::vector<Case> kCases{
    {"dpo", R"({"type": "dpo", "beta": 0.02})", false},
    {"hypo", R"({"type": "hypo", "beta": 0.02, "lambda": 0.5})", false},
    {"dpo, all strings covered", R"({"type": "dpo", "beta": 0.02})", true}};

/// 1/p, p the probability of all strings without data, as the reference was taught.
std::vector<double> rarities(bool quick) {
  return quick ? std::vector<double>{1e1, 1e3} : std::vector<double>{1e1, 1e2, 1e3};
}

/// KL to the reference, then gain in reward, of each.
const std::vector<std::string> kViews{"transformer", "transformer, given a string", "log-linear"};

/// log(1/p) as the network learned it, rarity by rarity; then views, KL and gain, cases, rarities.
std::vector<double> run_seed(int number, const std::vector<double>& all) {
  const auto seed = static_cast<std::uint64_t>(number);
  const NeuralTask task(seed, kDisappointment);
  const Table covered = covered_strings();
  const double common = covered.col(0).sum(), rare = kStrings - common;
  const Table uniform = Table::Zero(kStrings, kPrompts);

  const std::size_t points = all.size();
  std::vector<double> row(points * (1 + 2 * kViews.size() * kCases.size()));
  for (std::size_t i = 0; i < points; ++i) {
    const double logit = std::log(common / (rare * (all[i] - 1)));
    const auto reference = supervised_network(log_softmax(logit * (1 - covered)), seed);
    const Answers before = answers(*reference);
    const Table ref = before.strings();
    row[i] = -std::log(expectation(ref, 1 - covered));
    for (std::size_t c = 0; c < kCases.size(); ++c) {
      const Pairs pairs =
          population(covering(uniform, kCases[c].all_covered ? all_strings() : covered),
                     Preferences::bradley_terry(task.rewards));
      const auto network = train_network(
          *reference, pairs, {.loss = kCases[c].loss, .steps = kSteps, .batch = kBatch}, seed);
      const SoftmaxPolicy policy = SoftmaxPolicy::log_linear(ref, task.features);
      const Objective objective(ExactLoss(kCases[c].loss), policy, ref, pairs);
      const Minimum found = minimize(objective, Eigen::VectorXd::Zero(policy.parameters()),
                                     {.gradient_tolerance = 1e-9});
      const Answers after = answers(*network);
      const Table all_rewards = with_anything_else(task.rewards);
      const double values[] = {kl(after.outcomes, before.outcomes),
                               gain(after.outcomes, before.outcomes, all_rewards),
                               kl(after.strings(), ref),
                               gain(after.strings(), ref, task.rewards),
                               kl(policy.logps(found.theta), ref),
                               gain(policy.logps(found.theta), ref, task.rewards)};
      for (std::size_t m = 0; m < std::size(values); ++m) {
        row[points * (1 + m * kCases.size() + c) + i] = values[m];
      }
    }
  }
  return row;
}

}  // namespace

Report neural_coverage(const Settings& settings) {
  const std::vector<double> all = rarities(settings.quick);
  const std::size_t points = all.size();
  const auto by_seed =
      for_each_seed(neural_seeds(settings), [&](int seed) { return run_seed(seed, all); });
  const auto column = [&](std::size_t measure, std::size_t c, std::size_t point) {
    return points * (1 + measure * kCases.size() + c) + point;
  };
  Report report{.data = {{"neural-coverage",
                          {"policy", "case", "log(1/p)", "kl", "low", "high", "gain in reward"}}}};
  detail::Chart chart{.title = "Partial coverage: a transformer's distance from its reference",
                      .x_label = "log(1/p), p the reference's probability of strings without data",
                      .y_label = "KL(π ‖ π_ref), nats"};
  for (std::size_t view = 0; view < kViews.size(); ++view) {
    for (std::size_t c = 0; c < kCases.size(); ++c) {
      detail::Series series{.name = kViews[view] + ": " + kCases[c].name};
      for (std::size_t i = 0; i < points; ++i) {
        const double x = mean(by_seed, i).value;
        const Estimate distance = mean(by_seed, column(2 * view, c, i));
        const Estimate gained = mean(by_seed, column(2 * view + 1, c, i));
        series.xs.push_back(x);
        series.ys.push_back(distance.value);
        series.low.push_back(distance.low);
        series.high.push_back(distance.high);
        report.data[0].rows.push_back({kViews[view], kCases[c].name, x, distance.value,
                                       distance.low, distance.high, gained.value});
      }
      chart.series.push_back(std::move(series));
    }
  }
  report.pictures = {{"neural-coverage", std::move(chart)}};

  const auto slope_of = [&](std::size_t measure, std::size_t c) {
    return bootstrap(by_seed.size(), [&](const std::vector<std::size_t>& seeds) {
      std::vector<double> xs, ys;
      for (const std::size_t seed : seeds) {
        for (std::size_t i = 0; i < points; ++i) {
          xs.push_back(by_seed[seed][i]);
          ys.push_back(by_seed[seed][column(measure, c, i)]);
        }
      }
      return slope(xs, ys);
    });
  };
  double largest_hypo = 0;
  std::vector<std::vector<double>>
      at_rarest;  // HyPO's gain, that above DPO's, DPO's KL above HyPO's
  for (const auto& row : by_seed) {
    for (std::size_t i = 0; i < points; ++i) {
      largest_hypo = std::max(largest_hypo, row[column(0, 1, i)]);
    }
    const std::size_t i = points - 1;
    const double hypo = row[column(1, 1, i)];
    at_rarest.push_back(
        {hypo, hypo - row[column(1, 0, i)], row[column(0, 0, i)] - row[column(0, 1, i)]});
  }
  const Estimate dpo = slope_of(0, 0), exact_dpo = slope_of(4, 0), hypo = slope_of(0, 1);
  const Estimate control = slope_of(2, 2);
  const Estimate gained = mean(at_rarest, 0), advantage = mean(at_rarest, 1);
  const Estimate further = mean(at_rarest, 2);
  report.verdicts = {
      {"transformer: DPO's KL(π ‖ π_ref) grows with log(1/p): slope", dpo, "above 0.5",
       dpo.low > 0.5},
      {"log-linear, the same reference: slope", exact_dpo, "above 0.5", exact_dpo.low > 0.5},
      {"transformer: HyPO's does not: slope", hypo, "below 0.1 in size",
       std::max(std::abs(hypo.low), std::abs(hypo.high)) < 0.1},
      {"transformer: HyPO's KL is within log 2 / λ: largest", exactly(largest_hypo), "below 1.386",
       largest_hypo < std::log(2) / kLambda},
      {"transformer: where p is least DPO's KL is above that bound and HyPO's: by", further,
       "above 1.386", further.low > std::log(2) / kLambda},
      {"transformer: where p is least HyPO's reward is above DPO's: by", advantage, "above 0",
       advantage.low > 0},
      {"transformer: and above the reference's: by", gained, "above 0", gained.low > 0},
      {"control, transformer: with all strings covered DPO's KL hardly grows, given a string: "
       "slope",
       control, "below 0.25 in size",
       std::max(std::abs(control.low), std::abs(control.high)) < 0.25}};
  return report;
}

}  // namespace prefopt::lab
