// SPDX-License-Identifier: Apache-2.0

// 2406.01462 with a transformer: where pairs cover a part of the strings only, DPO's KL(pi || ref)
// grows the rarer the others are under the reference, HyPO's stays within log 2 / lambda, and its
// reward is higher. HyPO's samples are the network's own, as in any training. New pairs of the
// covered strings at every step, so that few data are not what is measured. The same reference goes
// to the log-linear class that holds the optimum. Control: pairs that cover all strings.

#include <algorithm>
#include <cmath>

#include "lab/experiments.h"
#include "lab/gains.h"
#include "lab/neural_experiments.h"
#include "lab/neural_task.h"
#include "prefopt/exact/measures.h"

namespace prefopt::lab::neural_coverage {
namespace {

using namespace exact;

constexpr double kLambda = 0.25;
constexpr double kDisappointment = 4;
constexpr double kLearningRate = 1e-2;
constexpr int kSteps = 400, kBriefSteps = 200;
constexpr Index kBatch = 32;

struct Case {
  std::string name, loss;
  bool all_covered;
};

const std::string kDpo = R"({"type": "dpo", "beta": 0.02})";
const std::string kHypo = R"({"type": "hypo", "beta": 0.02, "lambda": 0.25})";
const std::vector<Case> kCases{{"dpo", kDpo, false},
                               {"hypo", kHypo, false},
                               {"dpo, all strings covered", kDpo, true},
                               {"hypo, all strings covered", kHypo, true}};
enum : std::size_t { kDpoPartial, kHypoPartial, kDpoAll, kHypoAll };

/// 1/p, p the probability of all strings without data, as the reference was taught.
std::vector<double> rarities(bool quick) {
  return quick ? std::vector<double>{1e1, 1e3} : std::vector<double>{1e1, 1e2, 1e3};
}

/// Columns of an instance: log(1/p) as the network learned it, rarity by rarity; then for each
/// policy and case KL to the reference and gain in reward, rarity by rarity.
struct Columns {
  std::size_t points;

  static std::size_t rarity(std::size_t point) { return point; }
  std::size_t kl(bool exact, std::size_t c, std::size_t point) const {
    return points * (1 + 2 * (exact * kCases.size() + c)) + point;
  }
  std::size_t gain(bool exact, std::size_t c, std::size_t point) const {
    return kl(exact, c, point) + points;
  }
  std::size_t size() const { return points * (1 + 4 * kCases.size()); }
};

std::vector<double> run_seed(int number, const std::vector<double>& all, Length length) {
  const auto seed = static_cast<std::uint64_t>(number);
  const NeuralTask task(seed, kDisappointment);
  const Table covered = covered_strings();
  const double common = covered.col(0).sum(), rare = kStrings - common;
  const Table uniform = Table::Zero(kStrings, kPrompts);
  const Preferences preferences = Preferences::bradley_terry(task.rewards);

  const Columns columns{all.size()};
  std::vector<double> row(columns.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    const double logit = std::log(common / (rare * (all[i] - 1)));
    const Table target = log_softmax(logit * (1 - covered));
    const auto reference = supervised_network(Language::kClosed, target, seed);
    const Table ref = answers(*reference).strings();
    row[Columns::rarity(i)] = -((1 - covered) * ref.exp()).colwise().sum().log().mean();
    for (std::size_t c = 0; c < kCases.size(); ++c) {
      const Table& support = kCases[c].all_covered ? all_strings() : covered;
      const Pairs pairs = population(covering(uniform, support), preferences);
      const auto network = train_network(*reference, pairs,
                                         {.loss = kCases[c].loss,
                                          .learning_rate = kLearningRate,
                                          .steps = length == Length::kBrief ? kBriefSteps : kSteps,
                                          .batch = kBatch},
                                         seed);
      for (const bool exact : {false, true}) {
        const Table logps = exact ? best_table(kCases[c].loss, ref, task.features, pairs)
                                  : answers(*network).strings();
        row[columns.kl(exact, c, i)] = kl(logps, ref);
        row[columns.gain(exact, c, i)] = gain(logps, ref, task.rewards);
      }
    }
  }
  return row;
}

void draw(const BySeed& by_seed, const Columns& columns, Report& report) {
  Data data{"neural-coverage",
            {"policy", "case", "log(1/p)", "kl", "low", "high", "gain in reward"}};
  detail::Chart chart{.title = "Partial coverage: a transformer's distance from its reference",
                      .x_label = "log(1/p), p the reference's probability of strings without data",
                      .y_label = "KL(π ‖ π_ref), nats"};
  for (const bool exact : {false, true}) {
    for (std::size_t c = 0; c < kCases.size(); ++c) {
      detail::Series series{.name = kCases[c].name + (exact ? ", exact" : "")};
      for (std::size_t i = 0; i < columns.points; ++i) {
        const double x = mean(by_seed, Columns::rarity(i)).value;
        const Estimate distance = mean(by_seed, columns.kl(exact, c, i));
        add_point(series, x, distance);
        data.rows.push_back({exact ? "log-linear" : "transformer", kCases[c].name, x,
                             distance.value, distance.low, distance.high,
                             mean(by_seed, columns.gain(exact, c, i)).value});
      }
      chart.series.push_back(std::move(series));
    }
  }
  report.data.push_back(std::move(data));
  report.pictures.push_back({"neural-coverage", std::move(chart)});
}

Estimate slope_of(const BySeed& by_seed, const Columns& columns, bool exact, std::size_t c) {
  return bootstrap(by_seed.size(), [&](const std::vector<std::size_t>& seeds) {
    return slope(mean_curve(by_seed, seeds, Columns::rarity(0), columns.points),
                 mean_curve(by_seed, seeds, columns.kl(exact, c, 0), columns.points));
  });
}

}  // namespace

Report run(const Settings& settings) { return run(settings, Length::kWhole); }

Report run(const Settings& settings, Length length) {
  const std::vector<double> all = rarities(settings.quick);
  const Columns columns{all.size()};
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, all, length); });
  Report report;
  draw(by_seed, columns, report);

  const std::size_t rarest = columns.points - 1;
  const auto kl_of = [&](std::size_t c) { return columns.kl(false, c, rarest); };
  const auto gain_of = [&](std::size_t c) { return columns.gain(false, c, rarest); };
  const double bound = std::log(2) / kLambda;
  const Estimate dpo = slope_of(by_seed, columns, false, kDpoPartial);
  const Estimate exact_dpo = slope_of(by_seed, columns, true, kDpoPartial);
  const Estimate hypo = slope_of(by_seed, columns, false, kHypoPartial);
  const Estimate control = slope_of(by_seed, columns, false, kDpoAll);
  const double largest_hypo = largest(by_seed, columns.kl(false, kHypoPartial, 0), columns.points);
  const Estimate distance = mean(by_seed, kl_of(kDpoPartial));
  const Estimate distance_all = mean(by_seed, kl_of(kDpoAll));
  const Estimate further = mean_difference(by_seed, kl_of(kDpoPartial), kl_of(kDpoAll));
  const Estimate lead = mean_difference(by_seed, gain_of(kHypoPartial), gain_of(kDpoPartial));
  const Estimate lead_all = mean_difference(by_seed, gain_of(kHypoAll), gain_of(kDpoAll));
  const Estimate gained = mean(by_seed, gain_of(kHypoPartial));
  const auto of_table = [&](std::size_t c) {
    return mean_ratio(by_seed, kl_of(c), columns.kl(true, c, rarest));
  };
  const Estimate share = of_table(kDpoPartial), share_all = of_table(kDpoAll);
  report.verdicts = {
      {"transformer: DPO's KL(π ‖ π_ref) grows with log(1/p): slope", dpo, "above 0.5",
       dpo.low > 0.5},
      {"log-linear, the same reference: slope", exact_dpo, "above 0.5", exact_dpo.low > 0.5},
      {"control, transformer: with all strings covered it hardly grows: slope", control,
       "below 0.25 in size", std::max(std::abs(control.low), std::abs(control.high)) < 0.25},
      {"where p is least DPO's KL, transformer over log-linear", share, "1 within 0.25",
       share.low > 0.75 && share.high < 1.25},
      {"the same with all strings covered", share_all, "1 within 0.1",
       share_all.low > 0.9 && share_all.high < 1.1},
      {"transformer: HyPO's does not: slope", hypo, "below 0.1 in size",
       std::max(std::abs(hypo.low), std::abs(hypo.high)) < 0.1},
      {"transformer: HyPO's KL is within log 2 / λ: largest", exactly(largest_hypo), "below 2.773",
       largest_hypo < bound},
      {"transformer: where p is least DPO's KL is above that bound: KL", distance, "above 2.773",
       distance.low > bound},
      {"control, transformer: with all strings covered it is not: KL", distance_all, "below 2.773",
       distance_all.high < bound},
      {"transformer: DPO's KL is larger than with all strings covered: by", further, "above 0",
       further.low > 0},
      {"transformer: where p is least HyPO's reward is above DPO's: by", lead, "above 0",
       lead.low > 0},
      {"control, transformer: with all strings covered it is not: by", lead_all, "below 0",
       lead_all.high < 0},
      {"transformer: and above the reference's: by", gained, "above 0", gained.low > 0}};
  return report;
}

}  // namespace prefopt::lab::neural_coverage
