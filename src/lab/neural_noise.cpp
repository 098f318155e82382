// SPDX-License-Identifier: Apache-2.0

// 2403.00409 with a transformer: on labels flipped at a known rate DPO tends to another policy, so
// that more pairs stop helping, where rDPO's gap keeps falling. The same pairs go to a network
// and, with the network's own reference, to the log-linear class that holds the optimum. Gaps are
// of the policy given that it answers with a string. Control: without flips DPO's gap does not
// stop.

#include <fmt/format.h>

#include <cmath>

#include "lab/experiments.h"
#include "lab/neural_experiments.h"
#include "lab/neural_task.h"
#include "prefopt/exact/measures.h"

namespace prefopt::lab::neural_noise {
namespace {

using namespace exact;

constexpr double kBeta = 0.5, kFlips = 0.3;
constexpr int kSteps = 400, kBriefSteps = 150;
constexpr Index kBatch = 128, kBriefBatch = 64;

struct Case {
  std::string name, loss;
  double flips;
};

const std::string kDpo = fmt::format(R"({{"type": "dpo", "beta": {}}})", kBeta);
const std::vector<Case> kCases{
    {"dpo", kDpo, kFlips},
    {"robust_dpo",
     fmt::format(R"({{"type": "robust_dpo", "beta": {}, "label_smoothing": {}}})", kBeta, kFlips),
     kFlips},
    {"dpo without flips", kDpo, 0}};

/// Numbers of pairs.
std::vector<double> counts(bool quick) {
  return quick ? std::vector<double>{512, 16384} : std::vector<double>{512, 2048, 8192, 32768};
}

/// Gaps in regularized reward of network and log-linear policy, count by count; case by case.
std::vector<double> run_seed(int number, const std::vector<double>& ns, Length length) {
  const auto seed = static_cast<std::uint64_t>(number);
  const NeuralTask task(seed, 0);
  const Table uniform = log_softmax(Table::Zero(kStrings, kPrompts));
  const auto reference = supervised_network(Language::kClosed, uniform, seed);
  const Table ref = answers(*reference).strings();

  std::vector<double> row;
  for (const Case& one : kCases) {
    const Pairs all =
        population(uniform, Preferences::bradley_terry(task.rewards).flipped(one.flips));
    std::vector<double> exact_gaps;
    for (const double n : ns) {
      Random random = pair_random(seed);
      const Pairs pairs = merged(sample(all, static_cast<Index>(n), random));
      const auto network = train_network(*reference, pairs,
                                         {.loss = one.loss,
                                          .learning_rate = 3e-3,
                                          .decays = true,
                                          .steps = length == Length::kBrief ? kBriefSteps : kSteps,
                                          .batch = length == Length::kBrief ? kBriefBatch : kBatch},
                                         seed);
      row.push_back(suboptimality_gap(answers(*network).strings(), ref, task.rewards, kBeta));
      exact_gaps.push_back(suboptimality_gap(best_table(one.loss, ref, task.features, pairs), ref,
                                             task.rewards, kBeta));
    }
    row.insert(row.end(), exact_gaps.begin(), exact_gaps.end());
  }
  return row;
}

}  // namespace

Report run(const Settings& settings) { return run(settings, Length::kWhole); }

Report run(const Settings& settings, Length length) {
  const std::vector<double> ns = counts(settings.quick);
  const std::size_t points = ns.size();
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, ns, length); });
  Report report{.data = {{"neural-noise", {"policy", "case", "n", "gap", "low", "high"}}}};
  detail::Chart chart{.title = "Wrong labels: a transformer next to the exact optimum",
                      .x_label = "pairs",
                      .y_label = "gap in regularized reward",
                      .log_x = true,
                      .log_y = true};
  const auto column = [&](std::size_t c, bool exact, std::size_t point) {
    return (2 * c + (exact ? 1 : 0)) * points + point;
  };
  for (const bool exact : {false, true}) {
    for (std::size_t c = 0; c < kCases.size(); ++c) {
      const std::string policy = exact ? "log-linear" : "transformer";
      detail::Series series{.name = kCases[c].name + (exact ? ", exact" : "")};
      for (std::size_t i = 0; i < points; ++i) {
        const Estimate gap = mean(by_seed, column(c, exact, i));
        add_point(series, ns[i], gap);
        report.data[0].rows.push_back(
            {policy, kCases[c].name, ns[i], gap.value, gap.low, gap.high});
      }
      chart.series.push_back(std::move(series));
    }
  }
  report.pictures = {{"neural-noise", std::move(chart)}};

  const std::size_t last = points - 1;
  const auto saving = [&](bool exact) {
    return mean_difference(by_seed, column(0, exact, last), column(1, exact, last));
  };
  const auto left = [&](std::size_t c) {
    return mean_ratio(by_seed, column(c, false, last), column(c, false, 0));
  };
  const Estimate saved = saving(false), exact_saved = saving(true);
  const Estimate dpo = left(0), robust = left(1), clean = left(2);
  const Estimate plateau = mean_ratio(by_seed, column(0, false, last), column(0, true, last));
  const Estimate of_flips =
      mean_difference(by_seed, column(0, false, last), column(2, false, last));
  report.verdicts = {
      {"transformer: DPO's gap stops falling: share left at the most pairs", dpo, "above 0.7",
       dpo.low > 0.7},
      {"transformer: rDPO's falls: share left", robust, "below 0.7", robust.high < 0.7},
      {"transformer: rDPO's gap is below DPO's at the most pairs: by", saved, "above 0",
       saved.low > 0},
      {"log-linear, the same pairs: by", exact_saved, "above 0", exact_saved.low > 0},
      {"DPO's plateau, transformer over log-linear", plateau, "1 within 0.1",
       plateau.low > 0.9 && plateau.high < 1.1},
      {"transformer: DPO's gap with flips less that without, at the most pairs", of_flips,
       "above 0", of_flips.low > 0},
      {"control, transformer: without flips DPO's gap falls: share left", clean, "below 0.7",
       clean.high < 0.7}};
  return report;
}

}  // namespace prefopt::lab::neural_noise
