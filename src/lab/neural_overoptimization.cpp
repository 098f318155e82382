// SPDX-License-Identifier: Apache-2.0

// 2405.16436 with a transformer: with few pairs of a part of the strings, DPO's true reward rises
// and then falls as training goes on, and the chosen become less likely; RPO's do not. The same
// pairs go to a network and, with the network's own reference, to the log-linear class that holds
// the optimum. Strings without data are worse than their letters promise. Of a network the policy
// as it is counts, with what is no string at all; given a string it is shown as well. Controls:
// strings without data that are as good as they look; pairs of all strings, new ones at every step.

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "lab/experiments.h"
#include "lab/neural_task.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab {
namespace {

using namespace exact;

constexpr Index kPairs = 40;
constexpr double kUncoveredLogit = -2.5;  ///< of the reference, where the others have 0
constexpr double kDisappointment = 4;
constexpr double kLearningRate = 1e-3, kExactRate = 20;

struct Case {
  std::string name, loss;
  bool partial;
  double disappointment;
};

const std::string kDpo = R"({"type": "dpo", "beta": 0.1})";
const std::vector<Case> kCases{
    {"dpo", kDpo, true, kDisappointment},
    {"rpo", R"({"type": "rpo", "beta": 0.1, "eta": 0.1, "reduction": "sum"})", true,
     kDisappointment},
    {"dpo, uncovered strings as good as they look", kDpo, true, 0},
    {"dpo, new pairs of all strings", kDpo, false, kDisappointment}};

std::vector<int> checkpoints(bool quick) {
  std::vector<int> steps{0};
  for (int step = 1; step <= (quick ? 512 : 1024); step *= 2) steps.push_back(step);
  return steps;
}

/// At each checkpoint: the gain in reward, that given a string, the chosen strings' mean log-prob
/// above the reference's, and the probability of anything else.
constexpr std::size_t kMeasures = 4;
const std::vector<std::string> kNames{"reward", "reward-of-strings", "chosen", "anything-else"};
using Curves = std::array<std::vector<double>, kMeasures>;

double chosen_logps(const Table& logps, const Table& ref, const Pairs& pairs) {
  double sum = 0;
  for (Index i = 0; i < pairs.size(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    const Index x = pairs.prompts[at], y = pairs.chosen[at];
    sum += pairs.weights[i] * (logps(y, x) - ref(y, x));
  }
  return sum;
}

Curves train_transformer(const Decoder& reference, const Case& one, const NeuralTask& task,
                         const Pairs& pairs, std::uint64_t seed, const std::vector<int>& steps) {
  const Answers ref = answers(*reference.frozen_copy());
  const Table all_rewards = with_anything_else(task.rewards);
  Curves curves;
  train_network(reference, pairs,
                {.loss = one.loss,
                 .learning_rate = kLearningRate,
                 .steps = steps.back(),
                 .batch = one.partial ? 0 : kPairs},
                seed, [&](int step, Policy& policy) {
                  if (!std::binary_search(steps.begin(), steps.end(), step)) return;
                  const Answers now = answers(policy);
                  curves[0].push_back(gain(now.outcomes, ref.outcomes, all_rewards));
                  curves[1].push_back(gain(now.strings(), ref.strings(), task.rewards));
                  curves[2].push_back(chosen_logps(now.outcomes, ref.outcomes, pairs));
                  curves[3].push_back(now.outcomes.row(kStrings).exp().mean());
                });
  return curves;
}

/// A table answers with nothing but strings.
Curves train_table(const Table& ref, const Case& one, const NeuralTask& task, const Pairs& pairs,
                   const std::vector<int>& steps) {
  const SoftmaxPolicy policy = SoftmaxPolicy::log_linear(ref, task.features);
  const Objective objective(ExactLoss(one.loss), policy, ref, pairs);
  Curves curves;
  descend(objective, Eigen::VectorXd::Zero(policy.parameters()), kExactRate, steps.back(),
          [&](int step, const Eigen::VectorXd& theta) {
            if (!std::binary_search(steps.begin(), steps.end(), step)) return;
            const Table logps = policy.logps(theta);
            curves[0].push_back(gain(logps, ref, task.rewards));
            curves[1].push_back(curves[0].back());
            curves[2].push_back(chosen_logps(logps, ref, pairs));
            curves[3].push_back(0);
          });
  return curves;
}

/// Case by case: the transformer's curves, then the table's.
std::vector<double> run_seed(int number, const std::vector<int>& steps) {
  const auto seed = static_cast<std::uint64_t>(number);
  const Table covered = covered_strings();
  const auto reference = supervised_network(log_softmax(kUncoveredLogit * (1 - covered)), seed);
  const Table ref = answers(*reference).strings();
  std::vector<double> row;
  for (const Case& one : kCases) {
    const NeuralTask task(seed, one.disappointment);
    const Table behaviour =
        covering(Table::Zero(kStrings, kPrompts), one.partial ? covered : all_strings());
    const Pairs all = population(behaviour, Preferences::bradley_terry(task.rewards));
    Random random(seed);
    const Pairs pairs = one.partial ? sample(all, kPairs, random) : all;
    for (const Curves& curves : {train_transformer(*reference, one, task, pairs, seed, steps),
                                 train_table(ref, one, task, pairs, steps)}) {
      for (const auto& curve : curves) row.insert(row.end(), curve.begin(), curve.end());
    }
  }
  return row;
}

}  // namespace

Report neural_overoptimization(const Settings& settings) {
  const std::vector<int> steps = checkpoints(settings.quick);
  const std::size_t points = steps.size();
  const auto by_seed =
      for_each_seed(neural_seeds(settings), [&](int seed) { return run_seed(seed, steps); });
  const auto column = [&](std::size_t c, std::size_t measure, bool exact) {
    return ((2 * c + (exact ? 1 : 0)) * kMeasures + measure) * points;
  };
  Report report{.data = {{"neural-overoptimization",
                          {"policy", "case", "measure", "step", "mean", "low", "high"}}}};
  const std::vector<std::string> labels{
      "true reward above the reference's", "the same, given a string",
      "mean log π / π_ref of the chosen strings, nats", "probability of anything but strings"};
  for (std::size_t m = 0; m < kMeasures; ++m) {
    detail::Chart chart{.title = "Few pairs, partial coverage: a transformer along training",
                        .x_label = "steps (exact: of gradient descent)",
                        .y_label = labels[m],
                        .log_x = true};
    for (const bool exact : {false, true}) {
      for (std::size_t c = 0; c < kCases.size(); ++c) {
        detail::Series series{.name = kCases[c].name + (exact ? ", exact" : "")};
        for (std::size_t i = 0; i < points; ++i) {
          const Estimate at = mean(by_seed, column(c, m, exact) + i);
          series.xs.push_back(steps[i]);
          series.ys.push_back(at.value);
          series.low.push_back(at.low);
          series.high.push_back(at.high);
          report.data[0].rows.push_back({exact ? "log-linear" : "transformer", kCases[c].name,
                                         kNames[m], static_cast<double>(steps[i]), at.value, at.low,
                                         at.high});
        }
        if (!exact || c < 2) chart.series.push_back(std::move(series));
      }
    }
    report.pictures.push_back({"neural-overoptimization-" + kNames[m], std::move(chart)});
  }

  // Of the curve that is the mean over seeds, so that the noise of single seeds makes no peak.
  const auto drop = [&](std::size_t c, std::size_t measure, bool exact) {
    return bootstrap(by_seed.size(), [&](const std::vector<std::size_t>& seeds) {
      std::vector<double> curve(points, 0);
      for (const std::size_t seed : seeds) {
        for (std::size_t i = 0; i < points; ++i) {
          curve[i] += by_seed[seed][column(c, measure, exact) + i];
        }
      }
      const double peak = *std::max_element(curve.begin(), curve.end());
      return (peak - curve.back()) / static_cast<double>(seeds.size());
    });
  };
  const auto at_end = [&](std::size_t c, std::size_t measure) {
    return mean(by_seed, column(c, measure, false) + points - 1);
  };
  constexpr std::size_t kEarly = 3;
  const Estimate rise = mean(by_seed, column(0, 0, false) + kEarly);
  const Estimate dpo = drop(0, 0, false), dpo_exact = drop(0, 0, true), rpo = drop(1, 0, false);
  const Estimate strings = drop(0, 1, false), as_good = drop(2, 1, false), all = drop(3, 1, false);
  std::vector<std::vector<double>> leads;
  for (const auto& row : by_seed) {
    const std::size_t last = points - 1;
    leads.push_back({row[column(1, 0, false) + last] - row[column(0, 0, false) + last]});
  }
  const Estimate ahead = mean(leads, 0);
  const Estimate dpo_chosen = at_end(0, 2), rpo_chosen = at_end(1, 2);
  const Estimate dpo_else = at_end(0, 3), rpo_else = at_end(1, 3), all_else = at_end(3, 3);
  report.verdicts = {
      {fmt::format("transformer: DPO's true reward rises: gain after {} steps", steps[kEarly]),
       rise, "above 0", rise.low > 0},
      {"transformer: and falls: end below its peak by", dpo, "above 0", dpo.low > 0},
      {"transformer: it falls given a string too: by", strings, "above 0", strings.low > 0},
      {"log-linear, the same pairs: DPO's end below its peak by", dpo_exact, "above 0",
       dpo_exact.low > 0},
      {"transformer: RPO's does not fall: end below its peak by", rpo, "below 0.05",
       rpo.high < 0.05},
      {"transformer: RPO ends above DPO: by", ahead, "above 0", ahead.low > 0},
      {"transformer: DPO's chosen become less likely: change of log π, nats", dpo_chosen, "below 0",
       dpo_chosen.high < 0},
      {"transformer: RPO's do not: change of log π, nats", rpo_chosen, "above −0.5",
       rpo_chosen.low > -0.5},
      {"transformer: DPO goes to what is no string: probability", dpo_else, "above 0.1",
       dpo_else.low > 0.1},
      {"transformer: RPO does not: probability", rpo_else, "below 0.01", rpo_else.high < 0.01},
      {"control, transformer: where strings without data are as good as they look DPO's end is "
       "below its peak, given a string, by",
       as_good, "below 0.25", as_good.value < 0.25},
      {"control, transformer: with new pairs of all strings, given a string, by", all, "below 0.05",
       all.high < 0.05},
      {"control, transformer: pairs of all strings keep DPO with strings: probability of anything "
       "else",
       all_else, "below 0.01", all_else.high < 0.01}};
  return report;
}

}  // namespace prefopt::lab
