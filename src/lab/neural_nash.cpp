// SPDX-License-Identifier: Apache-2.0

// nash-last-iterate and self-play-average with a transformer and the engine: preferences by the
// first letter, three of which beat each other in a circle and the fourth of which loses to all.
// Self-play without a reference (2401.04056) goes round and away from the equilibrium; Nash-MD
// (2312.00886), whose opponent is the geometric mixture with the reference and whose loss has a
// KL, stays near it. Control: preferences that follow from rewards, where self-play gets there.

#include <fmt/format.h>

#include <utility>

#include "lab/neural_experiments.h"
#include "lab/neural_rounds.h"
#include "lab/random_games.h"
#include "prefopt/exact/games.h"
#include "prefopt/exact/measures.h"
#include "prefopt/losses/registry.h"

namespace prefopt::lab::neural_nash {
namespace {

using namespace exact;
using Eigen::MatrixXd;

constexpr double kTau = 0.1;
constexpr double kLoserWins = 0.1;  ///< how often the fourth letter beats another
constexpr double kLearningRate = 5e-3;
constexpr int kRounds = 150, kBriefRounds = 30;
constexpr std::int64_t kSamples = 16, kCopies = 4;
constexpr int kDrawn = 30;

struct Case {
  std::string name;
  bool has_reference, is_circle;
};

const std::vector<Case> kCases{{"self-play without a reference", false, true},
                               {"Nash-MD", true, true},
                               {"self-play, preferences of rewards", false, false}};
enum : std::size_t { kSelfPlay, kNashMd, kRewards };

/// Preferences of strings by their first letters' [kLetters, kLetters], a matrix a prompt.
template <class OfLetters>
Preferences by_first_letter(OfLetters&& of_letters) {
  std::vector<MatrixXd> all;
  for (Index x = 0; x < kPrompts; ++x) {
    const MatrixXd letters = of_letters();
    all.push_back(MatrixXd::NullaryExpr(kStrings, kStrings, [&](Index y, Index other) {
      return letters(y / kLetters, other / kLetters);
    }));
  }
  return Preferences::general(std::move(all));
}

Preferences circles(Random& random) {
  return by_first_letter([&] {
    MatrixXd letters = MatrixXd::Constant(kLetters, kLetters, 1 - kLoserWins);
    letters.row(kLetters - 1).setConstant(kLoserWins);
    letters.topLeftCorner(kLetters - 1, kLetters - 1) = random_cycle(random).of(0);
    letters(kLetters - 1, kLetters - 1) = 0.5;
    return letters;
  });
}

Preferences of_rewards(Random& random) {
  return by_first_letter(
      [&] { return Preferences::bradley_terry(2 * random.normals(kLetters, 1)).of(0); });
}

NeuralRounds rounds_of(const Case& one, const Preferences& preferences, int rounds) {
  NeuralRounds of{.loss = make_loss(fmt::format(R"({{"type": "policy_gradient", "tau": {}}})",
                                                one.has_reference ? kTau : 0)),
                  .sources = {writer(SourceKind::kPolicy, "policy", kSamples)},
                  .feedback = comparing(preferences),
                  .selection = R"({"type": "advantage"})",
                  .copies = kCopies,
                  .rounds = {.rounds = rounds, .steps = 1},
                  .learning_rate = kLearningRate,
                  .decays = true};
  if (one.has_reference) {
    SourceOptions mixture = writer(SourceKind::kMixture, "mixture", kSamples);
    mixture.weight = 0.25;
    of.sources.push_back(mixture);
    of.selection = R"({"type": "advantage", "against": "mixture"})";
  }
  return of;
}

/// Columns of an instance, case by case: exploitability along training, KL from the equilibrium at
/// the first and the last round, exploitability of the average policy.
struct Columns {
  static constexpr std::size_t kPoints = kDrawn + 1;

  static std::size_t curve(std::size_t c) { return (kPoints + 3) * c; }
  static std::size_t last(std::size_t c) { return curve(c) + kDrawn; }
  static std::size_t first_kl(std::size_t c) { return curve(c) + kPoints; }
  static std::size_t last_kl(std::size_t c) { return first_kl(c) + 1; }
  static std::size_t of_average(std::size_t c) { return first_kl(c) + 2; }
};

std::vector<double> run_seed(int number, int rounds) {
  const auto seed = static_cast<std::uint64_t>(number);
  Random random = pair_random(seed);
  const Preferences circle = circles(random), ranking = of_rewards(random);
  const auto reference = fresh_network(Language::kClosed, seed);
  const Table ref = answers(*reference).strings();
  std::vector<double> row;
  for (const Case& one : kCases) {
    const Preferences& preferences = one.is_circle ? circle : ranking;
    const Table center = equilibrium(ref, preferences, kTau).logps;
    std::vector<double> kls;
    Table sum = Table::Zero(kStrings, kPrompts);
    train_rounds(*reference, rounds_of(one, preferences, rounds), seed,
                 [&](int round, Policy& policy) {
                   if (round % (rounds / kDrawn) != 0) return;
                   const Table now = answers(policy).strings();
                   sum += now.exp();
                   row.push_back(exploitability(now, preferences));
                   kls.push_back(kl(center, now));
                 });
    row.push_back(kls.front());
    row.push_back(kls.back());
    row.push_back(exploitability(log_softmax(sum.log()), preferences));
  }
  return row;
}

}  // namespace

Report run(const Settings& settings) { return run(settings, Length::kWhole); }

Report run(const Settings& settings, Length length) {
  const int rounds = length == Length::kBrief ? kBriefRounds : kRounds;
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, rounds); });
  Report report{.data = {{"neural-nash", {"case", "round", "exploitability", "low", "high"}}},
                .pictures = {{"neural-nash",
                              {.title = "What the best reply gains against a transformer",
                               .x_label = "rounds",
                               .y_label = "exploitability"}}}};
  std::vector<double> xs;
  for (int i = 0; i <= kDrawn; ++i) xs.push_back(i * (rounds / kDrawn));
  for (std::size_t c = 0; c < kCases.size(); ++c) {
    add_curve(report, kCases[c].name, xs, means(by_seed, Columns::curve(c), Columns::kPoints));
  }
  report.verdicts = {
      above("transformer: self-play's last policy can be exploited: by",
            mean(by_seed, Columns::last(kSelfPlay)), 0.05),
      above("transformer: more than the policy that it began with: by",
            mean_difference(by_seed, Columns::last(kSelfPlay), Columns::curve(kSelfPlay)), 0),
      above("transformer: and more than the average of its policies: by",
            mean_difference(by_seed, Columns::last(kSelfPlay), Columns::of_average(kSelfPlay)), 0),
      above("transformer: it moves away from the equilibrium: KL(π* ‖ π), growth",
            mean_difference(by_seed, Columns::last_kl(kSelfPlay), Columns::first_kl(kSelfPlay)), 0),
      below("transformer: Nash-MD moves towards it: share of KL(π* ‖ π) left",
            mean_ratio(by_seed, Columns::last_kl(kNashMd), Columns::first_kl(kNashMd)), 0.5),
      above("transformer: its last policy can be exploited less than self-play's: by",
            mean_difference(by_seed, Columns::last(kSelfPlay), Columns::last(kNashMd)), 0),
      below("control, transformer: where preferences follow from rewards self-play gets there: "
            "exploitability at the end",
            mean(by_seed, Columns::last(kRewards)), 0.05)};
  return report;
}

}  // namespace prefopt::lab::neural_nash
