// SPDX-License-Identifier: Apache-2.0

// 2503.20783 (Dr. GRPO): a completion's loss divided by its length makes wrong answers longer and
// right ones shorter, although length has nothing to do with the reward. An answer is right or
// wrong by its first token and then ends with a probability after each token, with a logit of its
// own for right and for wrong answers. All completions are enumerated; the lengths of the others
// of a step, which do not depend on who is right, come in as the law of their sum. Controls: the
// aggregations `fixed` and `sequence_sum`; the token mean, whose bias falls with the size of the
// step.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "lab/token_steps.h"
#include "prefopt/exact/random.h"
#include "prefopt/objectives/advantages/leave_one_out.h"

namespace prefopt::lab::pg_length_bias {
namespace {

using Eigen::ArrayXd;
using Eigen::ArrayXXd;
using Eigen::Index;
using exact::Random;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// The logits of a policy: that its answer is right, and that one which is right, or wrong, ends.
enum Logit : Index { kRight, kStopRight, kStopWrong, kLogits };

struct Writer {
  Eigen::Array3d logits = Eigen::Array3d::Zero();
  std::int64_t longest = 6;  ///< where it ends in any case
};

/// One completion: its probability, and its tokens.
struct Answer {
  bool is_right = false;
  std::int64_t length = 0;
  double probability = 0;
  ArrayXd logps;    ///< [tokens]
  ArrayXXd slopes;  ///< [tokens, logits] of the log-probs
};

std::vector<Answer> answers_of(const Writer& writer) {
  std::vector<Answer> all;
  for (const bool is_right : {true, false}) {
    for (std::int64_t length = 1; length <= writer.longest; ++length) {
      Answer answer{.is_right = is_right,
                    .length = length,
                    .logps = ArrayXd::Zero(length),
                    .slopes = ArrayXXd::Zero(length, kLogits)};
      const auto choose = [&](Index token, Logit logit, bool is_yes) {
        const double p = sigmoid(writer.logits[logit]);
        answer.logps[token] += std::log(is_yes ? p : 1 - p);
        answer.slopes(token, logit) += is_yes ? 1 - p : -p;
      };
      choose(0, kRight, is_right);
      for (Index t = 0; t < std::min(length, writer.longest - 1); ++t) {
        choose(t, is_right ? kStopRight : kStopWrong, t + 1 == length);
      }
      answer.probability = std::exp(answer.logps.sum());
      all.push_back(std::move(answer));
    }
  }
  return all;
}

double mean_length(const Writer& writer, bool of_right) {
  double sum = 0, weight = 0;
  for (const Answer& answer : answers_of(writer)) {
    if (answer.is_right != of_right) continue;
    sum += answer.probability * static_cast<double>(answer.length);
    weight += answer.probability;
  }
  return sum / weight;
}

/// Returns the mean advantage of a wrong answer and of a right one, over all results of the others
/// of its group.
std::array<double, 2> mean_advantages(double right, Index group) {
  const Index patterns = Index{1} << (group - 1);
  std::vector<double> rewards;
  RolloutStep step =
      listed_step(std::vector<std::int64_t>(static_cast<std::size_t>(2 * patterns * group), 1), {});
  step.rewards.resize(step.completions());
  ArrayXd weights = ArrayXd::Ones(patterns);
  for (Index i = 0; i < step.completions(); ++i) {
    const Index pattern = i / group, place = i % group;
    // The first of a group is the one in question: wrong in the first half of the patterns.
    const bool is_right =
        place == 0 ? pattern >= patterns : ((pattern % patterns) >> (place - 1)) % 2 == 1;
    step.rewards[i] = is_right ? 1 : 0;
    step.groups[static_cast<std::size_t>(i)] = pattern;
    if (place > 0 && pattern < patterns) weights[pattern] *= is_right ? right : 1 - right;
  }
  const ArrayXd advantages = Advantage(LeaveOneOut()).of(step);
  std::array<double, 2> means{};
  for (Index i = 0; i < 2 * patterns; ++i) {
    means[static_cast<std::size_t>(i / patterns)] += weights[i % patterns] * advantages[i * group];
  }
  return means;
}

/// Probabilities of the sum of the lengths of `count` answers, by the sum.
ArrayXd law_of_lengths(const std::vector<Answer>& answers, Index count) {
  const std::int64_t longest = answers.back().length;
  ArrayXd one = ArrayXd::Zero(longest + 1);
  for (const Answer& answer : answers) one[answer.length] += answer.probability;
  ArrayXd law = ArrayXd::Ones(1);
  for (Index i = 0; i < count; ++i) {
    ArrayXd next = ArrayXd::Zero(law.size() + longest);
    for (Index at = 0; at < law.size(); ++at) next.segment(at, one.size()) += law[at] * one;
    law = next;
  }
  return law;
}

/// Returns the expected ascent direction in the logits of a step of `completions` in groups of
/// `group`. Exact where lengths do not depend on who is right.
Eigen::Array3d gradient(const TokenObjective& objective, const Writer& writer, Index completions,
                        Index group) {
  const auto answers = answers_of(writer);
  const auto advantages = mean_advantages(sigmoid(writer.logits[kRight]), group);
  const Aggregation aggregation = objective.options().aggregation;
  const bool of_groups = aggregation == Aggregation::kGroupTokenMean;
  const bool knows_others = of_groups || aggregation == Aggregation::kTokenMean;
  const ArrayXd law = knows_others ? law_of_lengths(answers, (of_groups ? group : completions) - 1)
                                   : ArrayXd(ArrayXd::Ones(1));
  Eigen::Array3d sum = Eigen::Array3d::Zero();
  for (const Answer& answer : answers) {
    const RolloutStep step = listed_step({answer.length}, ArrayXd::Zero(1));
    const ArrayXd advantage = ArrayXd::Constant(answer.length, advantages[answer.is_right ? 1 : 0]);
    TokenNumbers in = token_numbers(step, answer.logps, advantage);
    in.totals = {.completions = static_cast<double>(completions),
                 .groups = static_cast<double>(completions) / static_cast<double>(group)};
    for (Index others = 0; others < law.size(); ++others) {
      if (law[others] == 0) continue;
      in.totals.tokens = static_cast<double>(answer.length + others);
      in.group_lens = ArrayXd::Constant(answer.length, in.totals.tokens);
      const ArrayXd slopes = -objective.formula<ArrayXd>(in, 0).grad_logps;
      sum += static_cast<double>(completions) * law[others] * answer.probability *
             (answer.slopes.matrix().transpose() * slopes.matrix()).array();
    }
  }
  return sum;
}

/// Returns the same of a step of one group of two by listing all pairs of answers, for any writer.
Eigen::Array3d gradient_of_pairs(const TokenObjective& objective, const Writer& writer) {
  const auto answers = answers_of(writer);
  const Advantage advantage = LeaveOneOut();
  Eigen::Array3d sum = Eigen::Array3d::Zero();
  for (const Answer& a : answers) {
    for (const Answer& b : answers) {
      if (a.is_right == b.is_right) continue;  // both have an advantage of 0
      RolloutStep step = listed_step({a.length, b.length},
                                     ArrayXd{{a.is_right ? 1.0 : 0.0, b.is_right ? 1.0 : 0.0}});
      step.groups = {0, 0};
      ArrayXd logps(a.length + b.length);
      logps << a.logps, b.logps;
      const ArrayXd slopes =
          -objective.formula<ArrayXd>(token_numbers(step, logps, advantage.of(step)), 0).grad_logps;
      sum += a.probability * b.probability *
             (a.slopes.matrix().transpose() * slopes.head(a.length).matrix() +
              b.slopes.matrix().transpose() * slopes.tail(b.length).matrix())
                 .array();
    }
  }
  return sum;
}

TokenObjective objective_of(Aggregation aggregation, std::int64_t longest) {
  const bool is_fixed = aggregation == Aggregation::kFixed;
  return TokenObjective(
      {.aggregation = aggregation, .max_completion_length = is_fixed ? longest : 0});
}

struct Rule {
  std::string name;
  Aggregation aggregation;
};

const std::vector<Rule> kRules{{"sequence_token_mean", Aggregation::kSequenceTokenMean},
                               {"token_mean", Aggregation::kTokenMean},
                               {"fixed", Aggregation::kFixed},
                               {"sequence_sum", Aggregation::kSequenceSum}};
constexpr std::size_t kSequenceMean = 0, kTokenMean = 1, kFixed = 2;

std::vector<double> step_sizes(bool quick) {
  return quick ? std::vector<double>{2, 8, 32} : std::vector<double>{2, 8, 32, 128};
}

/// Completions of a group in a step of so many.
Index group_of(double completions) { return std::min<Index>(8, static_cast<Index>(completions)); }

/// Bias of a random writer, rule by rule and step by step: the gradient of the wrong answers' end.
std::vector<double> run_seed(int seed, const std::vector<double>& sizes) {
  Random random(static_cast<std::uint64_t>(seed));
  Writer writer{.longest = 4 + random.below(5)};
  writer.logits[kRight] = random.normal();
  writer.logits.tail(2).setConstant(random.normal());
  std::vector<double> row;
  for (const Rule& rule : kRules) {
    const TokenObjective objective = objective_of(rule.aggregation, writer.longest);
    for (const double size : sizes) {
      row.push_back(
          gradient(objective, writer, static_cast<Index>(size), group_of(size))[kStopWrong]);
    }
  }
  return row;
}

/// Mean lengths of wrong answers along exact ascent where the right answer cannot be learned.
std::vector<double> lengths_along(const TokenObjective& objective, int steps) {
  constexpr double kRate = 1;
  Writer writer;
  std::vector<double> lengths{mean_length(writer, false)};
  for (int step = 0; step < steps; ++step) {
    Eigen::Array3d ascent = gradient_of_pairs(objective, writer);
    ascent[kRight] = 0;
    writer.logits += kRate * ascent;
    lengths.push_back(mean_length(writer, false));
  }
  return lengths;
}

}  // namespace

Report run(const Settings& settings) {
  const std::vector<double> sizes = step_sizes(settings.quick);
  const std::size_t points = sizes.size();
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, sizes); });

  Report report{
      .data = {{"pg-length-bias-exact",
                {"aggregation", "completions", "right", "end of right", "end of wrong"}}}};
  const Writer even;
  std::vector<std::vector<Eigen::Array3d>> named;
  double apart = 0;
  for (const Rule& rule : kRules) {
    const TokenObjective objective = objective_of(rule.aggregation, even.longest);
    named.emplace_back();
    for (const double size : sizes) {
      const Eigen::Array3d of = gradient(objective, even, static_cast<Index>(size), group_of(size));
      named.back().push_back(of);
      report.data[0].rows.push_back({rule.name, size, of[kRight], of[kStopRight], of[kStopWrong]});
    }
    const Eigen::Array3d listed = gradient_of_pairs(objective, even);
    apart = std::max(apart, (listed - named.back().front()).abs().maxCoeff());
  }

  report.data.push_back({"pg-length-bias", {"case", "completions", "bias", "low", "high"}});
  report.pictures.push_back({"pg-length-bias",
                             {.title = "Gradient that makes wrong answers longer",
                              .x_label = "completions of a step",
                              .y_label = "size, in the logit of ending",
                              .log_x = true,
                              .log_y = true}});
  for (const std::size_t rule : {kSequenceMean, kTokenMean}) {
    std::vector<Estimate> sizes_of = means(by_seed, rule * points, points);
    for (Estimate& of : sizes_of) of = {-of.value, -of.high, -of.low};
    add_curve(report, kRules[rule].name, sizes, sizes_of);
  }

  const int steps = settings.quick ? 40 : 150;
  std::vector<double> xs, growth;
  for (int step = 0; step <= steps; ++step) xs.push_back(step);
  report.data.push_back({"pg-length-bias-along", {"case", "step", "length", "low", "high"}});
  report.pictures.push_back({"pg-length-bias-along",
                             {.title = "Mean length of wrong answers, a step of two completions",
                              .x_label = "steps of exact ascent",
                              .y_label = "tokens"}});
  for (const Rule& rule : kRules) {
    if (rule.aggregation == Aggregation::kSequenceSum) continue;
    const auto lengths = lengths_along(objective_of(rule.aggregation, even.longest), steps);
    std::vector<Estimate> ys;
    for (const double length : lengths) ys.push_back(exactly(length));
    add_curve(report, rule.name, xs, ys);
    growth.push_back(lengths.back() / lengths.front());
  }

  const TokenObjective of_groups = objective_of(Aggregation::kGroupTokenMean, even.longest);
  const double group_mean_share =
      gradient(of_groups, even, 32, 8)[kStopWrong] / gradient(of_groups, even, 8, 8)[kStopWrong];
  report.verdicts = {
      below("the law of the others' lengths gives what listing all pairs does: largest difference",
            exactly(apart), 1e-14),
      within("sequence_token_mean: gradient of the end of wrong answers",
             exactly(named[kSequenceMean][0][kStopWrong]), -0.0477864583333333, 1e-12),
      within("and of right ones, which it shortens", exactly(named[kSequenceMean][0][kStopRight]),
             0.0477864583333333, 1e-12),
      below("random policies: it makes wrong answers longer: gradient, largest",
            exactly(largest(by_seed, kSequenceMean * points, points)), 0),
      within("it does so at any size of the step: exponent",
             exponent(by_seed, kSequenceMean * points, sizes), 0, 1e-6),
      within("token_mean: bias against the size of the step: exponent",
             exponent(by_seed, kTokenMean * points, sizes), -1, 0.1),
      within("group_token_mean, groups of 8: bias of a step of 32 over that of one of 8",
             exactly(group_mean_share), 1, 1e-12),
      above("where answers cannot be learned, sequence_token_mean makes wrong ones longer: by",
            exactly(growth[kSequenceMean]), 1.2),
      within("control: fixed does not", exactly(growth[kFixed]), 1, 1e-12),
      below("control: fixed and sequence_sum have no bias: size, largest",
            exactly(std::max(largest(by_seed, kFixed * points, 2 * points),
                             -smallest(by_seed, kFixed * points, 2 * points))),
            1e-14)};
  return report;
}

}  // namespace prefopt::lab::pg_length_bias
