// SPDX-License-Identifier: Apache-2.0

// 2404.08495 (DR-PO): episodes that start at a uniformly random prefix of a demonstration learn
// what others do not find. A combination lock: H tokens, four letters, one completion rewarded.
// Exact gradients of the registered objective with the roll-in masked; only rewarded completions
// have an advantage. Steps until 90 % of the completions are rewarded. Control: prefixes of random
// letters, which are mostly wrong already.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lab/experiments.h"
#include "lab/lock.h"
#include "lab/token_steps.h"
#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"

namespace prefopt::lab::pg_resets {
namespace {

using Eigen::ArrayXd;
using Eigen::Index;
using exact::Random;
using exact::Table;

enum : std::size_t { kNoReset, kResets, kHalf, kRandom, kStarts };
const std::vector<std::string> kNames{"no reset", "resets", "resets in half of the episodes",
                                      "control: resets to random letters"};

/// Probabilities that an episode starts after the first c right letters.
ArrayXd starts_of(std::size_t kind, Index depth) {
  const auto length = static_cast<double>(depth);
  const ArrayXd uniform = ArrayXd::Constant(depth, 1 / length);
  ArrayXd first = ArrayXd::Zero(depth);
  first[0] = 1;
  switch (kind) {
    case kResets:
      return uniform;
    case kHalf:
      return (first + uniform) / 2;
    case kRandom:
      // c random letters are right with probability 4^-c; from others nothing is ever rewarded.
      return uniform * ArrayXd::LinSpaced(depth, 0, length - 1).unaryExpr([](double c) {
        return std::pow(static_cast<double>(kLockLetters), -c);
      });
    default:
      return first;
  }
}

/// The rewarded completion after each start, as one step: the first c tokens are not the policy's.
struct Lock {
  RolloutStep step;
  TokenNumbers numbers;       ///< log-probs change with the policy
  std::vector<Index> depths;  ///< of the acted tokens
  std::vector<Index> starts;  ///< and their completions
};

Lock make_lock(const TokenObjective& objective, Index depth) {
  Lock lock;
  lock.step = listed_step(std::vector<std::int64_t>(static_cast<std::size_t>(depth), depth),
                          ArrayXd::Ones(depth));
  for (Index start = 0; start < depth; ++start) {
    lock.step.acted.segment(depth * start, start) = 0;
    for (Index at = start; at < depth; ++at) {
      lock.depths.push_back(at);
      lock.starts.push_back(start);
    }
  }
  lock.numbers = token_numbers(lock.step, ArrayXd::Zero(lock.step.tokens()),
                               objective.advantages(lock.step).advantages);
  return lock;
}

/// Steps of exact ascent until the lock opens in 90 % of the episodes; kMostLockSteps if it never
/// does. `logits` [letters, depths], the first letter of each depth the right one.
int steps_to_open(Table logits, std::size_t kind) {
  const Index depth = logits.cols();
  const ArrayXd starts = starts_of(kind, depth);
  const TokenObjective objective({.aggregation = Aggregation::kSequenceSum});
  Lock lock = make_lock(objective, depth);
  const auto policy = exact::SoftmaxPolicy::tabular(logits);
  Eigen::VectorXd theta = Eigen::VectorXd::Zero(policy.parameters());
  for (int taken = 0; taken < kMostLockSteps; ++taken) {
    const Table logps = policy.logps(theta);
    const ArrayXd right = logps.row(0).transpose();
    if (std::exp(right.sum()) > kLockGoal) return taken;
    lock.numbers.logps = right(lock.depths);
    // Each start is a step of one completion.
    const ArrayXd slopes =
        -static_cast<double>(depth) * objective.formula<ArrayXd>(lock.numbers, 0).grad_logps;
    ArrayXd opened(depth);  // probability of each start and of all that is right after it
    double tail = 0;
    for (Index start = depth - 1; start >= 0; --start) {
      tail += right[start];
      opened[start] = starts[start] * std::exp(tail);
    }
    Table by_logp = Table::Zero(kLockLetters, depth);
    for (std::size_t t = 0; t < lock.depths.size(); ++t) {
      by_logp(0, lock.depths[t]) += opened[lock.starts[t]] * slopes[static_cast<Index>(t)];
    }
    theta += kLockRate * policy.pullback(logps, by_logp);
  }
  return kMostLockSteps;
}

}  // namespace

Report run(const Settings& settings) {
  const Index depth = settings.quick ? 6 : 8;
  const auto by_seed = for_each_seed(settings.seeds, [&](int seed) {
    Random random(static_cast<std::uint64_t>(seed));
    return lock_steps(random, depth, kStarts, steps_to_open);
  });
  auto [report, uniform] = report_lock_steps("pg-resets", kNames, by_seed, depth, steps_to_open);
  const auto growth = [&uniform = uniform](std::size_t kind) {
    return uniform[kind][1] / uniform[kind][0];
  };
  report.verdicts = {
      above("without resets: steps at depth 8 over those at 4", exactly(growth(kNoReset)), 16),
      below("with resets: the same", exactly(growth(kResets)), 4),
      below("with resets in half of the episodes: the same", exactly(growth(kHalf)), 4),
      above("depth 12: without resets it is still closed after: steps",
            exactly(uniform[kNoReset][2]), kMostLockSteps - 1),
      below("depth 12: with resets it opens after: steps", exactly(uniform[kResets][2]), 1000),
      above("policies near uniform: steps without resets over those with",
            mean_ratio(by_seed, kNoReset, kResets), 4),
      above("control: resets to random letters: steps at depth 8 over those without resets",
            exactly(uniform[kRandom][1] / uniform[kNoReset][1]), 1),
      above("control: the same with policies near uniform", mean_ratio(by_seed, kRandom, kNoReset),
            1)};
  return report;
}

}  // namespace prefopt::lab::pg_resets
