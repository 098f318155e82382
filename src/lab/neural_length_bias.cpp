// SPDX-License-Identifier: Apache-2.0

// pg-length-bias with a transformer: a completion's loss divided by its length makes wrong answers
// longer and right ones shorter, although length has nothing to do with the reward. The first
// letter, which decides who is right, is drawn for the network and not trained, so that being right
// cannot be learned; the network then writes letters until it ends. Controls: the aggregation
// `fixed`; the token mean, whose bias falls with the size of the step.

#include "lab/all_within.h"
#include "lab/neural_experiments.h"
#include "lab/neural_task.h"
#include "lab/token_steps.h"
#include "prefopt/online/rollout.h"
#include "prefopt/train/trainer.h"

namespace prefopt::lab::neural_length_bias {
namespace {

using exact::Index;

constexpr std::int64_t kLongest = 8;  ///< tokens of the network's own
constexpr double kLearningRate = 0.02;
/// So large that AdamW steps along the gradient's mean: divided by its own size, the noise of a
/// gradient that is 0 on average would be as long a step as any other.
constexpr double kAdamEpsilon = 1;
constexpr int kSteps = 150, kBriefSteps = 40;
constexpr Index kGroups = 16;  ///< of eight completions, of a step
constexpr int kDrawn = 10;
constexpr std::int64_t kMeasured = 32;  ///< completions of each beginning that a length is over

struct Case {
  std::string name;
  Aggregation aggregation;
};

const std::vector<Case> kCases{{"sequence_token_mean", Aggregation::kSequenceTokenMean},
                               {"token_mean", Aggregation::kTokenMean},
                               {"fixed", Aggregation::kFixed}};
enum : std::size_t { kSequenceMean, kTokenMean, kFixed };

/// A prompt and the first letter of an answer.
struct Beginning {
  Index prompt = 0, letter = 0;
  std::vector<std::int64_t> tokens() const {
    auto all = prompt_tokens(prompt);
    all.push_back(letter);
    return all;
  }
};

/// Two of the four letters are right, by prompt.
class RightLetters {
 public:
  explicit RightLetters(std::uint64_t seed) {
    exact::Random random = pair_random(seed);
    for (Index x = 0; x < kPrompts; ++x) {
      const Index first = random.below(kLetters);
      const Index second = (first + 1 + random.below(kLetters - 1)) % kLetters;
      is_right_(first, x) = is_right_(second, x) = 1;
    }
  }
  bool operator()(const Beginning& of) const { return is_right_(of.letter, of.prompt) == 1; }

 private:
  exact::Table is_right_ = exact::Table::Zero(kLetters, kPrompts);
};

std::vector<Rollout> draw(Policy& policy, const std::vector<Beginning>& beginnings,
                          std::int64_t each, std::int64_t seed) {
  std::vector<std::vector<std::int64_t>> contexts;
  for (const Beginning& of : beginnings) contexts.push_back(of.tokens());
  return draw_rollouts(policy, contexts,
                       {.samples_per_prompt = each,
                        .sampling = {.max_new_tokens = kLongest, .eos_id = kEnd, .seed = seed},
                        .at_once = 1 << 10});
}

std::vector<Beginning> all_beginnings() {
  std::vector<Beginning> all;
  for (Index x = 0; x < kPrompts; ++x) {
    for (Index a = 0; a < kLetters; ++a) all.push_back({x, a});
  }
  return all;
}

struct Lengths {
  double right = 0, wrong = 0;
};

/// Returns the mean lengths of right and of wrong answers.
Lengths mean_lengths(Policy& policy, const RightLetters& is_right) {
  constexpr std::int64_t kSeed = 1 << 20;  // no step has it
  const auto beginnings = all_beginnings();
  const auto rollouts = draw(policy, beginnings, kMeasured, kSeed);
  Lengths sums;
  for (std::size_t i = 0; i < rollouts.size(); ++i) {
    const auto length = static_cast<double>(rollouts[i].completion.size());
    (is_right(beginnings[i / kMeasured]) ? sums.right : sums.wrong) += length;
  }
  const double each = static_cast<double>(rollouts.size()) / 2;
  return {sums.right / each, sums.wrong / each};
}

/// Returns a step of groups of eight: each letter twice, so that half of a group is right.
std::vector<TokenRow> rows_of_step(Policy& policy, const TokenObjective& objective,
                                   const RightLetters& is_right, std::int64_t seed) {
  std::vector<Beginning> beginnings;
  for (Index g = 0; g < kGroups; ++g) {
    for (Index i = 0; i < 2 * kLetters; ++i) beginnings.push_back({g % kPrompts, i % kLetters});
  }
  const auto rollouts = draw(policy, beginnings, 1, seed);
  std::vector<std::int64_t> lens;
  Eigen::ArrayXd rewards(std::ssize(rollouts));
  for (Index i = 0; i < rewards.size(); ++i) {
    const auto of = static_cast<std::size_t>(i);
    lens.push_back(1 + std::ssize(rollouts[of].completion));
    rewards[i] = is_right(beginnings[of]) ? 1 : 0;
  }
  RolloutStep step = listed_step(lens, rewards);
  const auto starts = step.starts();
  for (std::size_t i = 0; i < lens.size(); ++i) {
    step.groups[i] = static_cast<std::int64_t>(i) / (2 * kLetters);
    step.acted[starts[i]] = 0;
  }
  const Eigen::ArrayXd advantages = objective.advantages(step).advantages;
  std::vector<TokenRow> rows;
  for (std::size_t i = 0; i < lens.size(); ++i) {
    TokenRow row{.prompt = prompt_tokens(beginnings[i].prompt),
                 .chosen = {beginnings[i].letter},
                 .rejected = {},
                 .chosen_mask = TokenMask(static_cast<std::size_t>(lens[i]), 1)};
    row.chosen.insert(row.chosen.end(), rollouts[i].completion.begin(),
                      rollouts[i].completion.end());
    row.chosen_mask[0] = 0;
    row.rollout = {.group = step.groups[i],
                   .advantages = std::vector<double>(advantages.begin() + starts[i] + 1,
                                                     advantages.begin() + starts[i + 1])};
    rows.push_back(std::move(row));
  }
  return rows;
}

/// Mean lengths along training: of wrong answers, then of right ones, case by case.
std::vector<double> run_seed(int number, int steps) {
  const auto seed = static_cast<std::uint64_t>(number);
  const RightLetters is_right(seed);
  std::vector<double> row;
  for (const Case& one : kCases) {
    const TokenObjective objective(
        {.advantage = R"({"kind": "leave_one_out"})",
         .aggregation = one.aggregation,
         .max_completion_length = one.aggregation == Aggregation::kFixed ? kLongest : 0});
    const auto network = fresh_network(Language::kOpen, seed);
    Trainer trainer(network, nullptr, objective,
                    {.optimizer = {.learning_rate = kLearningRate,
                                   .adam_epsilon = kAdamEpsilon,
                                   .max_grad_norm = 0,
                                   .schedule = Schedule::kConstant}});
    std::vector<double> wrong, right;
    const auto measure = [&] {
      const Lengths now = mean_lengths(*network, is_right);
      wrong.push_back(now.wrong);
      right.push_back(now.right);
    };
    measure();
    for (int step = 1; step <= steps; ++step) {
      trainer.step(rows_of_step(*network, objective, is_right,
                                static_cast<std::int64_t>(seed) * steps + step));
      if (step % (steps / kDrawn) == 0) measure();
    }
    row.insert(row.end(), wrong.begin(), wrong.end());
    row.insert(row.end(), right.begin(), right.end());
  }
  return row;
}

}  // namespace

Report run(const Settings& settings) { return run(settings, Length::kWhole); }

Report run(const Settings& settings, Length length) {
  const int steps = length == Length::kBrief ? kBriefSteps : kSteps;
  constexpr std::size_t kPoints = kDrawn + 1;
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, steps); });
  const auto curve = [&](std::size_t c, bool of_right) {
    return (2 * c + (of_right ? 1 : 0)) * kPoints;
  };
  Report report{.data = {{"neural-length-bias", {"case", "step", "length", "low", "high"}}},
                .pictures = {{"neural-length-bias",
                              {.title = "Mean length of a transformer's answers",
                               .x_label = "steps",
                               .y_label = "tokens"}}}};
  std::vector<double> xs;
  for (int i = 0; i <= kDrawn; ++i) xs.push_back(i * (steps / kDrawn));
  for (std::size_t c = 0; c < kCases.size(); ++c) {
    for (const bool of_right : {false, true}) {
      add_curve(report, kCases[c].name + (of_right ? ", right answers" : ", wrong answers"), xs,
                means(by_seed, curve(c, of_right), kPoints));
    }
  }
  const auto growth = [&](std::size_t c, bool of_right) {
    return mean_ratio(by_seed, curve(c, of_right) + kDrawn, curve(c, of_right));
  };
  const auto apart = [&](std::size_t c) {
    return mean_difference(by_seed, curve(c, false) + kDrawn, curve(c, true) + kDrawn);
  };
  report.verdicts = {
      above("transformer: sequence_token_mean makes wrong answers longer: by",
            growth(kSequenceMean, false), 1.2),
      below("transformer: and right ones shorter: by", growth(kSequenceMean, true), 0.9),
      above("transformer: at the end wrong ones are longer than right ones: tokens",
            apart(kSequenceMean), 1),
      above(
          "transformer: more so than with token_mean on steps of 128: tokens",
          difference_of_differences(
              by_seed, {curve(kSequenceMean, false) + kDrawn, curve(kSequenceMean, true) + kDrawn},
              {curve(kTokenMean, false) + kDrawn, curve(kTokenMean, true) + kDrawn}),
          0),
      all_within("control, transformer: fixed leaves wrong answers as they are",
                 growth(kFixed, false), 1, 0.1),
      all_within("control, transformer: and right ones", growth(kFixed, true), 1, 0.1),
      all_within("control, transformer: with fixed they end alike: tokens apart", apart(kFixed), 0,
                 0.5)};
  return report;
}

}  // namespace prefopt::lab::neural_length_bias
