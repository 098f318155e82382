// SPDX-License-Identifier: Apache-2.0
#pragma once

// A combination lock: completions of four letters at each of some depths, one of which is rewarded.

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "lab/experiment.h"
#include "prefopt/exact/policy.h"
#include "prefopt/exact/random.h"

namespace prefopt::lab {

inline constexpr Eigen::Index kLockLetters = 4;
/// The rate of exact ascent, and the share of episodes that have to open the lock.
inline constexpr double kLockRate = 2, kLockGoal = 0.9;
/// A lock that is still closed after so many steps counts as one that never opens.
inline constexpr int kMostLockSteps = 20000;

/// Returns the steps until a lock opens, from a policy's `logits` [letters, depths]; the first
/// letter of each depth is the right one.
using StepsToOpen = std::function<int(const exact::Table& logits, std::size_t kind)>;

/// Returns the steps of each of `kinds` from a policy that is nearly uniform.
std::vector<double> lock_steps(exact::Random& random, Eigen::Index depth, std::size_t kinds,
                               const StepsToOpen& steps_to_open);

/// Steps of locks: the report's table and picture, and what they are from uniform policies, by kind
/// and for depths 4, 8 and 12.
struct LockSteps {
  Report report;
  std::vector<std::vector<double>> uniform;
};

/// Returns them for kinds of these names; `by_seed` has those from nearly uniform policies, at
/// `depth`, in its first columns.
LockSteps report_lock_steps(const std::string& experiment, const std::vector<std::string>& names,
                            const std::vector<std::vector<double>>& by_seed, Eigen::Index depth,
                            const StepsToOpen& steps_to_open);

}  // namespace prefopt::lab
