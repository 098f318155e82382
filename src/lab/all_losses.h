// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/exact/objective.h"

// One task on which every loss of the registry, with its default options, is compared at equal
// distance from the reference.
namespace prefopt::lab {

struct TaskOptions {
  exact::Index pairs = 400;
  double flips = 0;        ///< rate of wrong labels
  double coverage = 1;     ///< share of each prompt's actions that occur in pairs
  double length_bias = 0;  ///< what a token adds to the reward that labels are made with
};

/// Returns the registered losses that a policy learns by from given pairs: not those of reward
/// models, nor of the policy's own samples.
std::vector<std::string> losses_of_pairs();

/// Four prompts of eight actions of 10 to 100 tokens, ten features that the reward is linear in and
/// an eleventh of the actions without pairs, which costs a reward of 2; Bradley-Terry labels.
struct Task {
  Task(std::uint64_t seed, const TaskOptions& options);

  exact::Objective objective(const std::string& config) const;

  exact::Table ref, rewards, lens;
  exact::SoftmaxPolicy policy;
  exact::Preferences labels;
  exact::Pairs pairs;
};

/// Measures of the policies on the way that a loss takes from the reference, at given values of
/// KL(pi || ref).
struct Path {
  std::vector<double> rewards;  ///< above the reference's
  std::vector<double> lens;     ///< tokens above the reference's
};

/// Follows the gradient in steps of equal length, so that the scale of a loss does not matter. A
/// loss that stops before a distance keeps its last policy there.
Path follow(const Task& task, const std::string& config, const std::vector<double>& distances);

/// Returns the most reward above the reference's at each distance: the policy ref e^(r / beta) / Z.
std::vector<double> most_rewards(const Task& task, const std::vector<double>& distances);

}  // namespace prefopt::lab
