// SPDX-License-Identifier: Apache-2.0

// 2405.16436 with a transformer: with few pairs of a part of the strings, DPO's true reward rises
// and then falls as training continues, and the chosen become less likely; RPO's do not. The same
// pairs go to a network and, with the network's own reference, to the log-linear class that holds
// the optimum. Strings without data are worse than their letters promise. Controls: strings without
// data that are as good as they look; pairs of all strings, new ones at every step. In an open
// language, where most answers are no string and no pair speaks of them, it shows where the
// probability goes.

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "lab/experiments.h"
#include "lab/gains.h"
#include "lab/neural_experiments.h"
#include "lab/neural_task.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/minimize.h"

namespace prefopt::lab::neural_overoptimization {
namespace {

using namespace exact;

constexpr Index kPairs = 40;
constexpr double kUncoveredLogit = -2.5;  ///< of the reference, where the others have 0
constexpr double kDisappointment = 4;
constexpr double kLearningRate = 4e-3, kExactRate = 20;

struct Case {
  std::string name, loss;
  Language language = Language::kClosed;
  bool partial = true;
  double disappointment = kDisappointment;
};

const std::string kDpo = R"({"type": "dpo", "beta": 0.1})";
const std::string kRpo = R"({"type": "rpo", "beta": 0.1, "eta": 0.1, "reduction": "sum"})";
const std::vector<Case> kCases{
    {"dpo", kDpo},
    {"rpo", kRpo},
    {.name = "dpo, uncovered strings as good as they look", .loss = kDpo, .disappointment = 0},
    {.name = "rpo, uncovered strings as good as they look", .loss = kRpo, .disappointment = 0},
    {.name = "dpo, new pairs of all strings", .loss = kDpo, .partial = false},
    {"dpo, open language", kDpo, Language::kOpen},
    {"rpo, open language", kRpo, Language::kOpen},
    {"dpo, open language, new pairs of all strings", kDpo, Language::kOpen, false}};
enum : std::size_t {
  kDpoCase,
  kRpoCase,
  kDpoAsGood,
  kRpoAsGood,
  kDpoAll,
  kDpoOpen,
  kRpoOpen,
  kDpoOpenAll
};

/// Returns the steps after which a policy is measured.
std::vector<int> checkpoints(Length length) {
  constexpr int kSteps = 1024, kBriefSteps = 512;
  std::vector<int> steps{0};
  for (int step = 1; step <= (length == Length::kBrief ? kBriefSteps : kSteps); step *= 2)
    steps.push_back(step);
  return steps;
}

/// At each checkpoint: the gain in reward, the chosen strings' mean log-prob above the reference's,
/// and the probability of anything else.
enum : std::size_t { kReward, kChosen, kElse, kMeasures };
const std::vector<std::string> kNames{"reward", "chosen", "anything-else"};
const std::vector<std::string> kLabels{"true reward above the reference's",
                                       "mean log π / π_ref of the chosen strings, nats",
                                       "probability of anything but strings"};
using Curves = std::array<std::vector<double>, kMeasures>;

/// Columns of an instance: case by case the transformer's curves, then the table's.
struct Columns {
  std::size_t points;

  std::size_t curve(bool exact, std::size_t c, std::size_t measure) const {
    return ((2 * c + (exact ? 1 : 0)) * kMeasures + measure) * points;
  }
  std::size_t end(std::size_t c, std::size_t measure) const {
    return curve(false, c, measure) + points - 1;
  }
};

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
                  curves[kReward].push_back(gain(now.outcomes, ref.outcomes, all_rewards));
                  curves[kChosen].push_back(chosen_gain(now.outcomes, ref.outcomes, pairs));
                  curves[kElse].push_back(now.outcomes.row(kStrings).exp().mean());
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
            curves[kReward].push_back(gain(logps, ref, task.rewards));
            curves[kChosen].push_back(chosen_gain(logps, ref, pairs));
            curves[kElse].push_back(0);
          });
  return curves;
}

std::vector<double> run_seed(int number, const std::vector<int>& steps) {
  const auto seed = static_cast<std::uint64_t>(number);
  const Table covered = covered_strings();
  const Table target = log_softmax(kUncoveredLogit * (1 - covered));
  const auto closed = supervised_network(Language::kClosed, target, seed);
  const auto open = supervised_network(Language::kOpen, target, seed);
  std::vector<double> row;
  for (const Case& one : kCases) {
    const Decoder& reference = one.language == Language::kOpen ? *open : *closed;
    const Table ref = answers(*reference.frozen_copy()).strings();
    const NeuralTask task(seed, one.disappointment);
    const Table behaviour =
        covering(Table::Zero(kStrings, kPrompts), one.partial ? covered : all_strings());
    const Pairs all = population(behaviour, Preferences::bradley_terry(task.rewards));
    Random random = pair_random(seed);
    const Pairs pairs = one.partial ? sample(all, kPairs, random) : all;
    for (const Curves& curves : {train_transformer(reference, one, task, pairs, seed, steps),
                                 train_table(ref, one, task, pairs, steps)}) {
      for (const auto& curve : curves) row.insert(row.end(), curve.begin(), curve.end());
    }
  }
  return row;
}

void draw(const BySeed& by_seed, const Columns& columns, const std::vector<int>& steps,
          Report& report) {
  Data data{"neural-overoptimization",
            {"policy", "case", "measure", "step", "mean", "low", "high"}};
  for (std::size_t m = 0; m < kMeasures; ++m) {
    detail::Chart chart{.title = "Few pairs, partial coverage: a transformer along training",
                        .x_label = "steps (exact: of gradient descent)",
                        .y_label = kLabels[m],
                        .log_x = true};
    for (const bool exact : {false, true}) {
      for (std::size_t c = 0; c < kCases.size(); ++c) {
        detail::Series series{.name = kCases[c].name + (exact ? ", exact" : "")};
        for (std::size_t i = 0; i < columns.points; ++i) {
          const Estimate at = mean(by_seed, columns.curve(exact, c, m) + i);
          add_point(series, steps[i], at);
          data.rows.push_back({exact ? "log-linear" : "transformer", kCases[c].name, kNames[m],
                               static_cast<double>(steps[i]), at.value, at.low, at.high});
        }
        const bool is_open = kCases[c].language == Language::kOpen;
        const bool is_shown =
            m == kElse ? is_open && !exact : !is_open && (!exact || c <= kRpoCase);
        if (is_shown) chart.series.push_back(std::move(series));
      }
    }
    report.pictures.push_back({"neural-overoptimization-" + kNames[m], std::move(chart)});
  }
  report.data.push_back(std::move(data));
}

std::vector<Verdict> reward_verdicts(const BySeed& by_seed, const Columns& columns,
                                     const std::vector<int>& steps) {
  // Where the mean curves peaked on seeds 0 to 5. A maximum found on the seeds that are judged
  // would make every curve fall.
  constexpr std::size_t kPeak = 9, kExactPeak = 6;
  const auto gain_at_peak = [&](std::size_t c) { return columns.curve(false, c, kReward) + kPeak; };
  const auto end = [&](std::size_t c) { return columns.end(c, kReward); };
  const auto lost = [&](std::size_t c) {
    return mean_difference(by_seed, gain_at_peak(c), end(c));
  };
  const std::size_t exact_curve = columns.curve(true, kDpoCase, kReward);
  const Estimate rise = mean(by_seed, gain_at_peak(kDpoCase));
  const Estimate dpo = lost(kDpoCase), rpo = lost(kRpoCase);
  const Estimate exact_dpo =
      mean_difference(by_seed, exact_curve + kExactPeak, exact_curve + columns.points - 1);
  const Estimate as_good = lost(kDpoAsGood), all = lost(kDpoAll);
  const Estimate more = difference_of_differences(by_seed, {gain_at_peak(kDpoCase), end(kDpoCase)},
                                                  {gain_at_peak(kDpoAsGood), end(kDpoAsGood)});
  const Estimate lead = mean_difference(by_seed, end(kRpoCase), end(kDpoCase));
  const Estimate lead_as_good = mean_difference(by_seed, end(kRpoAsGood), end(kDpoAsGood));
  const int at = steps[kPeak];
  return {{fmt::format("transformer: DPO's true reward rises: gain after {} steps", at), rise,
           "above 0", rise.low > 0},
          {fmt::format("transformer: and falls: lost from step {} to the end", at), dpo, "above 0",
           dpo.low > 0},
          {fmt::format("log-linear, the same pairs: lost from step {}", steps[kExactPeak]),
           exact_dpo, "above 0", exact_dpo.low > 0},
          {"control, transformer: where strings without data are as good as they look: lost",
           as_good, "below 0.1", as_good.high < 0.1},
          {"control, transformer: with new pairs of all strings: lost", all, "below 0.1",
           all.high < 0.1},
          {"transformer: DPO loses more than where they are as good as they look: by", more,
           "above 0", more.low > 0},
          {"transformer: RPO's does not fall: lost", rpo, "below 0.05", rpo.high < 0.05},
          {"transformer: RPO ends above DPO: by", lead, "above 0", lead.low > 0},
          {"control, transformer: not where strings without data are as good as they look: by",
           lead_as_good, "below 0", lead_as_good.high < 0}};
}

std::vector<Verdict> likelihood_verdicts(const BySeed& by_seed, const Columns& columns) {
  const auto end = [&](std::size_t c, std::size_t measure) {
    return mean(by_seed, columns.end(c, measure));
  };
  const Estimate dpo = end(kDpoCase, kChosen), rpo = end(kRpoCase, kChosen);
  const Estimate dpo_else = end(kDpoOpen, kElse), rpo_else = end(kRpoOpen, kElse);
  const Estimate all_else = end(kDpoOpenAll, kElse);
  const Estimate more_else =
      mean_difference(by_seed, columns.end(kDpoOpen, kElse), columns.end(kRpoOpen, kElse));
  return {
      {"transformer: DPO's chosen become less likely: change of log π, nats", dpo, "below 0",
       dpo.high < 0},
      {"transformer: RPO's do not: change of log π, nats", rpo, "above −0.5", rpo.low > -0.5},
      {"open language: DPO goes to what is no string: probability", dpo_else, "above 0.1",
       dpo_else.low > 0.1},
      {"open language: RPO does not: probability", rpo_else, "below 0.01", rpo_else.high < 0.01},
      {"open language: DPO goes there more than RPO: by", more_else, "above 0", more_else.low > 0},
      {"control, open language: pairs of all strings keep DPO with strings: probability of "
       "anything else",
       all_else, "below 0.01", all_else.high < 0.01}};
}

}  // namespace

Report run(const Settings& settings) { return run(settings, Length::kWhole); }

Report run(const Settings& settings, Length length) {
  const std::vector<int> steps = checkpoints(length);
  const Columns columns{steps.size()};
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, steps); });
  Report report;
  draw(by_seed, columns, steps, report);
  report.verdicts = reward_verdicts(by_seed, columns, steps);
  const auto more = likelihood_verdicts(by_seed, columns);
  report.verdicts.insert(report.verdicts.end(), more.begin(), more.end());
  return report;
}

}  // namespace prefopt::lab::neural_overoptimization
