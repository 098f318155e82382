// SPDX-License-Identifier: Apache-2.0

// 2412.01981: a model that was trained on labels of whole answers, with a reference, is a process
// reward model. Proposition 3.1, on trees: sums of its token rewards are soft values of prefixes,
// between the mean and the largest reward of their continuations. Then a task: at each prefix some
// letters are wrong, an answer is right where none of its letters is. Policies of tokens are
// trained by `ce` on noisy labels of answers that the reference drew, and by `dpo` on pairs of the
// same answers, as many labels; the step of least reward has to be the first wrong one. Control:
// the log π of the same model without the reference, and a choice at random.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "lab/experiments.h"
#include "lab/token_tree.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/pair_logps.h"
#include "prefopt/losses/pair/ce.h"
#include "prefopt/losses/pair/dpo.h"

namespace prefopt::lab::implicit_prm {
namespace {

using exact::Random;

constexpr TokenTree kTree{.letters = 4, .depth = 4};
constexpr double kFlips = 0.05;  ///< share of wrong labels
constexpr double kBeta = 1;
constexpr double kRate = 4;
constexpr int kSteps = 150;

/// Which letters are wrong at each prefix, [letters, nodes]; not all of them.
struct ErrorTask {
  Table ref;
  Table is_wrong;

  bool is_right(Index leaf) const { return first_error(leaf) == kTree.depth; }
  /// Returns the first step with a wrong letter; `depth` where there is none.
  Index first_error(Index leaf) const {
    Index t = 0;
    while (t < kTree.depth && is_wrong(kTree.letter_of(leaf, t), kTree.node_of(leaf, t)) == 0) ++t;
    return t;
  }
};

ErrorTask make_task(Random& random) {
  ErrorTask task{.ref = random_policy(kTree, 0.7, random),
                 .is_wrong = Table::Zero(kTree.letters, kTree.nodes())};
  for (Index node = 0; node < kTree.nodes(); ++node) {
    task.is_wrong(random.below(kTree.letters), node) = 1;
  }
  return task;
}

struct Answer {
  Index leaf;
  bool label;
};

std::vector<Answer> draw_answers(const ErrorTask& task, Index count, Random& random) {
  const ArrayXd weights = leaf_logps(kTree, task.ref).exp();
  std::vector<Answer> answers;
  for (Index i = 0; i < count; ++i) {
    const Index leaf = random.index(weights);
    const bool flips = random.uniform() < kFlips;
    answers.push_back({leaf, task.is_right(leaf) != flips});
  }
  return answers;
}

/// Adds the derivative in a completion's log-prob to that of its tokens.
void add_to_tokens(Index leaf, double slope, Table& by_logps) {
  for (Index t = 0; t < kTree.depth; ++t) {
    by_logps(kTree.letter_of(leaf, t), kTree.node_of(leaf, t)) += slope;
  }
}

/// Descends by a function that returns the derivative in the log-probs of tokens.
template <class Gradient>
Table train(const ErrorTask& task, const Gradient& gradient_of) {
  Table logits = task.ref;
  for (int step = 0; step < kSteps; ++step) {
    const Table policy = exact::log_softmax(logits);
    logits -= kRate * logit_gradient(policy, gradient_of(policy));
  }
  return exact::log_softmax(logits);
}

ArrayXd of_leaves(const ArrayXd& x, const std::vector<Index>& leaves) { return x(leaves); }

Table train_ce(const ErrorTask& task, const std::vector<Answer>& answers) {
  const CeLoss loss({.beta = kBeta});
  std::vector<Index> leaves;
  ArrayXd labels(static_cast<Index>(answers.size()));
  for (std::size_t i = 0; i < answers.size(); ++i) {
    leaves.push_back(answers[i].leaf);
    labels[static_cast<Index>(i)] = answers[i].label ? 1 : 0;
  }
  const ArrayXd ref = of_leaves(leaf_logps(kTree, task.ref), leaves);
  return train(task, [&](const Table& policy) {
    ExactPairLogps in;
    in.chosen_logps = of_leaves(leaf_logps(kTree, policy), leaves);
    in.ref_chosen_logps = ref;
    in.labels = labels;
    const ArrayXd slopes = loss.evaluate(in).grad_chosen;
    Table by_logps = Table::Zero(kTree.letters, kTree.nodes());
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      add_to_tokens(leaves[i], slopes[static_cast<Index>(i)], by_logps);
    }
    return by_logps;
  });
}

/// Pairs each answer of one label with one of the other, until either runs out.
Table train_dpo(const ErrorTask& task, const std::vector<Answer>& answers) {
  const DpoLoss loss({.beta = kBeta});
  std::vector<Index> chosen, rejected;
  for (const Answer& answer : answers) (answer.label ? chosen : rejected).push_back(answer.leaf);
  const std::size_t pairs = std::min(chosen.size(), rejected.size());
  chosen.resize(pairs);
  rejected.resize(pairs);
  if (pairs == 0) return task.ref;
  const ArrayXd ref = leaf_logps(kTree, task.ref);
  return train(task, [&](const Table& policy) {
    const ArrayXd logps = leaf_logps(kTree, policy);
    ExactPairLogps in;
    in.chosen_logps = of_leaves(logps, chosen);
    in.rejected_logps = of_leaves(logps, rejected);
    in.ref_chosen_logps = of_leaves(ref, chosen);
    in.ref_rejected_logps = of_leaves(ref, rejected);
    const ExactLossOutput out = loss.evaluate(in);
    Table by_logps = Table::Zero(kTree.letters, kTree.nodes());
    for (std::size_t i = 0; i < pairs; ++i) {
      add_to_tokens(chosen[i], out.grad_chosen[static_cast<Index>(i)], by_logps);
      add_to_tokens(rejected[i], out.grad_rejected[static_cast<Index>(i)], by_logps);
    }
    return by_logps;
  });
}

/// Share of the reference's wrong answers whose step of least score is the first wrong one.
double found_errors(const ErrorTask& task, const Table& scores) {
  const ArrayXd weights = leaf_logps(kTree, task.ref).exp();
  double found = 0;
  double all = 0;
  for (Index leaf = 0; leaf < kTree.leaves(); ++leaf) {
    const Index error = task.first_error(leaf);
    if (error == kTree.depth) continue;
    Index least = 0;
    token_logps(kTree, scores, leaf).minCoeff(&least);
    all += weights[leaf];
    if (least == error) found += weights[leaf];
  }
  return found / all;
}

/// Largest error of proposition 3.1 for a random model: sums of token rewards against soft values.
double proposition_error(Random& random) {
  const Table ref = random_policy(kTree, 1, random);
  const Table model = random_policy(kTree, 1, random);
  const double beta = 0.05;
  const ArrayXd rewards = beta * (leaf_logps(kTree, model) - leaf_logps(kTree, ref));
  const ArrayXd values = soft_values(kTree, ref, rewards, beta);
  double worst = 0;
  for (Index leaf = 0; leaf < kTree.leaves(); ++leaf) {
    double sum = 0;
    const ArrayXd each = beta * (token_logps(kTree, model, leaf) - token_logps(kTree, ref, leaf));
    for (Index t = 0; t < kTree.depth; ++t) {
      worst = std::max(worst, std::abs(sum - values[kTree.node_of(leaf, t)]));
      sum += each[t];
    }
    worst = std::max(worst, std::abs(sum - rewards[leaf]));
  }
  return worst;
}

enum : std::size_t { kProposition, kBelowMean, kAboveMax, kCe, kDpo, kRawCe, kColumns };

/// How far soft values are below the mean and above the largest reward, at worst.
std::vector<double> limit_errors(Random& random) {
  const Table ref = random_policy(kTree, 1, random);
  const ArrayXd rewards = ArrayXd::NullaryExpr(kTree.leaves(), [&] { return random.uniform(); });
  const auto value = [&](double beta) { return soft_values(kTree, ref, rewards, beta)[0]; };
  const double mean = value(std::numeric_limits<double>::infinity());
  double below = 0;
  double above = 0;
  double last = rewards.maxCoeff();
  for (const double beta : {0.01, 0.05, 0.5, 5.0, 500.0}) {
    below = std::max(below, mean - value(beta));
    above = std::max(above, value(beta) - last);
    last = value(beta);
  }
  return {below, above};
}

std::vector<double> run_seed(int seed, Index answers) {
  Random random(static_cast<std::uint64_t>(seed));
  std::vector<double> row{proposition_error(random)};
  for (const double error : limit_errors(random)) row.push_back(error);
  const ErrorTask task = make_task(random);
  const auto drawn = draw_answers(task, answers, random);
  const Table ce = train_ce(task, drawn);
  const Table dpo = train_dpo(task, drawn);
  row.push_back(found_errors(task, ce - task.ref));
  row.push_back(found_errors(task, dpo - task.ref));
  row.push_back(found_errors(task, ce));
  return row;
}

}  // namespace

Report run(const Settings& settings) {
  const std::vector<double> sizes =
      settings.quick ? std::vector<double>{50, 200} : std::vector<double>{50, 100, 200, 400, 800};
  Report report{.data = {{"implicit-prm", {"case", "answers", "share", "low", "high"}}},
                .pictures = {{"implicit-prm",
                              {.title = "Wrong answers whose first wrong step has the least reward",
                               .x_label = "labelled answers",
                               .y_label = "share",
                               .log_x = true}}}};
  std::vector<BySeed> by_size;
  for (const double size : sizes) {
    by_size.push_back(for_each_seed(
        settings.seeds, [&](int seed) { return run_seed(seed, static_cast<Index>(size)); }));
  }
  const auto draw = [&](const std::string& name, std::size_t column) {
    std::vector<Estimate> ys;
    for (const BySeed& by_seed : by_size) ys.push_back(mean(by_seed, column));
    add_curve(report, name, sizes, ys);
  };
  draw("ce", kCe);
  draw("dpo on pairs of the same answers", kDpo);
  draw("control: log π alone", kRawCe);
  const BySeed& few = by_size.front();
  const BySeed& many = by_size[settings.quick ? 1 : 2];
  report.verdicts = {
      below("sums of token rewards are soft values of prefixes: error, largest",
            exactly(largest(few, kProposition, 1)), 1e-12),
      below("a soft value is at least the mean of the rewards below: short of it, largest",
            exactly(largest(few, kBelowMean, 1)), 1e-12),
      below("and falls with β from the largest: rise, largest", exactly(largest(few, kAboveMax, 1)),
            1e-12),
      above("200 answers: the first wrong step has ce's least reward: share", mean(many, kCe), 0.5),
      above("more often than of dpo on the same answers: by", mean_difference(many, kCe, kDpo), 0),
      above("control: log π without the reference finds less: by",
            mean_difference(many, kCe, kRawCe), 0)};
  return report;
}

}  // namespace prefopt::lab::implicit_prm
