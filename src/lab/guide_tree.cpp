// SPDX-License-Identifier: Apache-2.0

// 2306.11816 (RLGF): a guide rolls in, or out, of the completions that a policy learns from. Exact
// policy gradients on completions of two tokens, of which only bb is rewarded; the policy seldom
// begins with b, the guide mostly. PPO++: the guide writes the first token, the policy learns the
// second. AggreVaTeD: the policy learns the first token from what the guide makes of it. LOLS
// mixes them. One exact step of AggreVaTeD is no worse than the guide. Controls: a guide that is
// the policy changes nothing; one that never begins with b does not help.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "lab/experiments.h"
#include "lab/two_tokens.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"

namespace prefopt::lab::guide_tree {
namespace {

using namespace exact;
using Eigen::ArrayXd;
using Eigen::ArrayXXd;

constexpr double kRollIn = 0.8;     ///< share of the episodes with a roll-in, the paper's beta
constexpr double kLolsShare = 0.8;  ///< of PPO++ in LOLS
constexpr double kRate = 1;
constexpr int kMostSteps = 5000;

/// Shares of the episodes: of the policy alone, with the guide in front, with the guide behind.
struct Mix {
  std::string name;
  double alone, guide_in, guide_out;
};

const std::vector<Mix> kMixes{{"policy alone", 1, 0, 0},
                              {"PPO++", 1 - kRollIn, kRollIn, 0},
                              {"AggreVaTeD", 1 - kRollIn, 0, kRollIn},
                              {"LOLS", 1 - kRollIn, kRollIn* kLolsShare, kRollIn*(1 - kLolsShare)}};

/// Logits of a policy over two letters, a and b.
struct Logits {
  ArrayXd first;
  ArrayXXd second;  ///< row a: after a

  TwoTokens probabilities() const {
    return {log_softmax(first).col(0).exp(), log_softmax(second.transpose()).exp().transpose()};
  }
};

ArrayXXd only_bb() {
  ArrayXXd rewards = ArrayXXd::Zero(2, 2);
  rewards(1, 1) = 1;
  return rewards;
}

/// One step along the exact gradient of the mean reward, in the tokens that the policy wrote.
Logits step(Logits logits, const TwoTokens& guide, const Mix& mix, const ArrayXXd& rewards) {
  const TwoTokens policy = logits.probabilities();
  const auto ascent = [](const ArrayXd& p, const ArrayXd& values) -> ArrayXd {
    return p * (values - (p * values).sum());
  };
  logits.first += kRate * (mix.alone * ascent(policy.first, policy.action_values(rewards)) +
                           mix.guide_out * ascent(policy.first, guide.action_values(rewards)));
  for (Index a = 0; a < rewards.rows(); ++a) {
    const double visits = mix.alone * policy.first[a] + mix.guide_in * guide.first[a];
    logits.second.row(a) +=
        kRate * visits *
        ascent(policy.second.row(a).transpose(), rewards.row(a).transpose()).transpose();
  }
  return logits;
}

/// Steps until the policy's value is above 1/2; kMostSteps if it never is.
double steps_to_half(Logits logits, const TwoTokens& guide, const Mix& mix) {
  const ArrayXXd rewards = only_bb();
  for (int taken = 0; taken < kMostSteps; ++taken) {
    if (logits.probabilities().value(rewards) > 0.5) return taken;
    logits = step(std::move(logits), guide, mix, rewards);
  }
  return kMostSteps;
}

TwoTokens two_tokens(double first_b, double second_b) {
  TwoTokens result{ArrayXd(2), ArrayXXd::Constant(2, 2, 0.5)};
  result.first << 1 - first_b, first_b;
  result.second.row(1) << 1 - second_b, second_b;
  return result;
}

ArrayXXd random_rows(Random& random, Index letters) {
  return log_softmax(random.normals(letters, letters)).exp().transpose();
}

/// Steps of each mix with the guide; of PPO++ with a guide that never begins with b; value of one
/// exact step less the guide's on a random tree; largest difference that a guide equal to the
/// policy makes to a step.
std::vector<double> run_seed(int seed) {
  Random random(static_cast<std::uint64_t>(seed));
  const TwoTokens start = two_tokens(0.05, 0.1), guide = two_tokens(0.7, 0.9);
  const Logits logits{start.first.log() + 0.3 * random.normals(2, 1).col(0),
                      start.second.log() + 0.3 * random.normals(2, 2)};
  std::vector<double> row;
  for (const Mix& mix : kMixes) row.push_back(steps_to_half(logits, guide, mix));
  const TwoTokens bad = two_tokens(0, 0.1);
  row.push_back(steps_to_half(logits, bad, kMixes[1]));

  constexpr Index kLetters = 4;
  const ArrayXXd rewards =
      ArrayXXd::NullaryExpr(kLetters, kLetters, [&] { return random.uniform(); });
  const TwoTokens any{random_rows(random, kLetters).row(0).transpose(),
                      random_rows(random, kLetters)};
  row.push_back(one_step_value(any, rewards) - any.value(rewards));

  // With the policy as its own guide the two roll-ins together are an episode of the policy.
  const TwoTokens self = logits.probabilities();
  const Logits alone = step(logits, self, kMixes[0], only_bb());
  const Logits both = step(logits, self, {"both", 0, 1, 1}, only_bb());
  row.push_back(std::max((alone.first - both.first).abs().maxCoeff(),
                         (alone.second - both.second).abs().maxCoeff()));
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const auto by_seed = for_each_seed(settings.seeds, run_seed);
  Report report{.data = {{"guide-tree", {"case", "place", "steps", "low", "high"}}},
                .pictures = {{"guide-tree",
                              {.title = "Steps until half of the completions are rewarded",
                               .x_label = "method, in the order of the legend",
                               .y_label = "steps",
                               .log_y = true}}}};
  const std::size_t mixes = kMixes.size();
  for (std::size_t m = 0; m < mixes; ++m) {
    add_curve(report, kMixes[m].name, {static_cast<double>(m)}, {mean(by_seed, m)});
    report.pictures.back().chart.series.back().style = detail::Series::Style::kPoints;
  }
  const TwoTokens guide = two_tokens(0.7, 0.9);
  const double gain = one_step_value(guide, only_bb()) - guide.value(only_bb());
  report.verdicts = {
      within("one exact step of AggreVaTeD with a guide worth 0.63: gain over it", exactly(gain),
             0.27, 1e-12),
      above("on random trees it is no worse than the guide: gain, smallest",
            exactly(smallest(by_seed, mixes + 1, 1)), -1e-12),
      above("steps of the policy alone over those of PPO++", mean_ratio(by_seed, 0, 1), 2),
      above("over those of AggreVaTeD", mean_ratio(by_seed, 0, 2), 2),
      above("over those of LOLS", mean_ratio(by_seed, 0, 3), 2),
      below("control: a guide that is the policy changes nothing: difference of a step, largest",
            exactly(largest(by_seed, mixes + 2, 1)), 1e-15),
      below(
          "control: a guide that never begins with b does not help: steps of the policy alone over "
          "those of PPO++",
          mean_ratio(by_seed, 0, mixes), 1)};
  return report;
}

}  // namespace prefopt::lab::guide_tree
