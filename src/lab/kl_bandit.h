// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#include "prefopt/exact/policy.h"
#include "prefopt/exact/random.h"
#include "prefopt/objectives/token_objective.h"

// One prompt with a reference, rewards and the policy that the data are of: where a token objective
// ends when it is followed exactly.
namespace prefopt::lab {

inline constexpr double kKlCoefficient = 0.5;

struct KlBandit {
  Eigen::ArrayXd ref, rewards;     ///< [actions] log-probs, rewards
  Eigen::ArrayXd behaviour = {};   ///< log-probs of the policy that draws; empty: the one trained
  Eigen::ArrayXd old = {};         ///< that ratios are to; empty: none, the ratio is 1
  Eigen::ArrayXd advantages = {};  ///< instead of the objective's
};

/// Four actions, for which the goldens are.
KlBandit four_actions();

/// The log-probs of the optimum of E r − β KL(π ‖ π_ref).
Eigen::ArrayXd tilted(const KlBandit& bandit);

/// Returns the objective's expected ascent direction in the log-probs, each action with its
/// probability under the policy that draws.
Eigen::ArrayXd expected_slopes(const TokenObjective& objective, const KlBandit& bandit,
                               const Eigen::ArrayXd& logps);

/// The same in the logits of a softmax.
Eigen::ArrayXd expected_gradient(const TokenObjective& objective, const KlBandit& bandit,
                                 const Eigen::ArrayXd& logps);

/// A walk along the expected gradient from the reference.
struct Walk {
  double rate = 1;
  int steps = 400;
  Eigen::ArrayXd preconditioner = {};  ///< probabilities that divide it; empty: the policy's own
  bool is_plain = false;               ///< no division: gradient ascent
};

Eigen::ArrayXd walk(const TokenObjective& objective, const KlBandit& bandit, const Walk& how);

}  // namespace prefopt::lab
