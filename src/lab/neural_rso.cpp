// SPDX-License-Identifier: Apache-2.0

// rso-law with a transformer and the engine: strings that a network writes and rejection sampling
// accepts follow π_ref e^(r / β) / Z (2309.06657), whose pairs then train it by dpo. They are
// compared with as many pairs of the reference's own strings. Controls: 4 accepted of 8, where the
// largest reward drawn is seldom the largest there is; acceptance at a β so large that nothing
// is rejected.

#include <fmt/format.h>

#include <utility>

#include "lab/all_within.h"
#include "lab/gains.h"
#include "lab/neural_experiments.h"
#include "lab/neural_rounds.h"
#include "prefopt/exact/measures.h"
#include "prefopt/losses/registry.h"

namespace prefopt::lab::neural_rso {
namespace {

using namespace exact;

constexpr double kBeta = 0.5, kAnything = 1e9;  ///< the latter rejects nothing
constexpr double kRewardScale = 0.3;
constexpr double kLearningRate = 3e-3;
constexpr std::int64_t kCopies = 32, kBriefCopies = 8;
constexpr int kSteps = 100, kBriefSteps = 30;

struct Case {
  std::string name;
  std::int64_t draws, accepted;
  double beta;
};

const std::vector<Case> kCases{{"8 of 64", 64, 8, kBeta},
                               {"4 of 8", 8, 4, kBeta},
                               {"the reference's own", 8, 8, kAnything},
                               {"8 of 64, nothing rejected", 64, 8, kAnything}};
enum : std::size_t { kRso, kFew, kOwn, kUntilted };

NeuralRounds rounds_of(const Case& one, const Table& rewards, std::int64_t copies, int steps) {
  return {.loss = make_loss(fmt::format(R"({{"type": "dpo", "beta": {}}})", kBeta)),
          .sources = {writer(SourceKind::kReference, "reference", one.draws)},
          .feedback = rewarding(rewards),
          .selection = fmt::format(R"({{"type": "rejection", "beta": {}, "n": {}, "merge": false,
                                        "weigh_prompts": false}})",
                                   one.beta, one.accepted),
          .copies = copies,
          .rounds = {.steps = steps},
          .learning_rate = kLearningRate,
          .decays = true};
}

/// Returns the mean reward of the strings of all rows.
double mean_reward(const std::vector<TokenRow>& rows, const Table& rewards) {
  double sum = 0;
  for (const TokenRow& row : rows) {
    const Index x = row.prompt.front();
    sum += rewards(string_of(row.chosen), x) + rewards(string_of(row.rejected), x);
  }
  return sum / (2 * static_cast<double>(rows.size()));
}

/// Returns the mean reward of the strings of pairs of two that differ, both drawn from `logps`; a
/// prompt counts by the pairs that it has.
double reward_of_different(const Table& logps, const Table& rewards) {
  const Table p = logps.exp();
  const Table weights = p * (1 - p);
  return (weights * rewards).sum() / weights.sum();
}

/// Columns of an instance, case by case.
enum Measure : std::size_t { kExcess, kGain, kShare, kMeasures };
std::size_t column(std::size_t c, Measure measure) { return kMeasures * c + measure; }

/// The reward of accepted strings above that of π_ref e^(r / β) / Z; after training the gain in
/// reward, and its share of the most that the same KL allows.
std::vector<double> run_seed(int number, std::int64_t copies, int steps) {
  const auto seed = static_cast<std::uint64_t>(number);
  const Table rewards = kRewardScale * NeuralTask(seed, 0).rewards;
  const auto reference = fresh_network(Language::kClosed, seed);
  const Table ref = answers(*reference).strings();
  const double expected = reward_of_different(optimum(ref, rewards, kBeta), rewards);
  std::vector<double> row;
  for (const Case& one : kCases) {
    const auto rows = first_rows(*reference, rounds_of(one, rewards, copies, 1), seed);
    const auto network = train_rounds(*reference, rounds_of(one, rewards, copies, steps), seed);
    const Table now = answers(*network).strings();
    const double gained = gain(now, ref, rewards);
    row.push_back(mean_reward(rows, rewards) - expected);
    row.push_back(gained);
    row.push_back(gained / gain(optimum_at(ref, rewards, kl(now, ref)), ref, rewards));
  }
  return row;
}

}  // namespace

Report run(const Settings& settings) { return run(settings, Length::kWhole); }

Report run(const Settings& settings, Length length) {
  const bool is_brief = length == Length::kBrief;
  const auto by_seed = for_each_seed(settings.seeds, [&](int seed) {
    return run_seed(seed, is_brief ? kBriefCopies : kCopies, is_brief ? kBriefSteps : kSteps);
  });
  Report report{.data = {{"neural-rso", {"case", "measure", "value", "low", "high"}}},
                .pictures = {{"neural-rso",
                              {.title = "A transformer's gain in reward by the law of its pairs",
                               .x_label = "reward of the pairs above that of π_r",
                               .y_label = "gain in reward"}}}};
  const std::vector<std::string> measures{"excess reward of pairs", "gain", "share of the most"};
  for (std::size_t c = 0; c < kCases.size(); ++c) {
    for (const Measure measure : {kExcess, kGain, kShare}) {
      const Estimate of = mean(by_seed, column(c, measure));
      report.data[0].rows.push_back({kCases[c].name, measures[measure], of.value, of.low, of.high});
    }
    detail::Series series{.name = kCases[c].name};
    add_point(series, mean(by_seed, column(c, kExcess)).value, mean(by_seed, column(c, kGain)));
    report.pictures[0].chart.series.push_back(std::move(series));
  }
  const auto difference = [&](Measure measure, std::size_t a, std::size_t b) {
    return mean_difference(by_seed, column(a, measure), column(b, measure));
  };
  report.verdicts = {
      all_within("transformer: 8 accepted of 64 follow π_r: their reward above its",
                 mean(by_seed, column(kRso, kExcess)), 0, 0.02),
      below("control, transformer: 4 of 8 do not: their reward above its",
            mean(by_seed, column(kFew, kExcess)), -0.02),
      above("transformer: their pairs train better than the reference's own: gain, by",
            difference(kGain, kRso, kOwn), 0),
      above("transformer: and closer to the most that the same KL allows: share, by",
            difference(kShare, kRso, kOwn), 0),
      all_within("control, transformer: where nothing is rejected they do not: gain, by",
                 difference(kGain, kUntilted, kOwn), 0, 0.02)};
  return report;
}

}  // namespace prefopt::lab::neural_rso
