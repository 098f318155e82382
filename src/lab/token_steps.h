// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "prefopt/objectives/rollout_step.h"
#include "prefopt/objectives/token_objective.h"

// Steps of a token objective whose completions are listed instead of drawn, so that expectations of
// its gradient are sums.
namespace prefopt::lab {

using TokenNumbers = BasicTokenArrays<Eigen::ArrayXd>;

/// Returns a step of completions that the policy wrote all tokens of, each its own group.
RolloutStep listed_step(std::vector<std::int64_t> lens, Eigen::ArrayXd rewards);

/// Returns the entries of the acted tokens. `x` [tokens].
Eigen::ArrayXd of_acted(const RolloutStep& step, const Eigen::ArrayXd& x);

/// Returns the acted tokens of a step as an objective reads them; `logps` and `advantages`
/// [tokens]. The totals are those of all completions: where these are alternatives to each other
/// rather than one step, gradients have to be multiplied by the number of steps listed.
TokenNumbers token_numbers(const RolloutStep& step, const Eigen::ArrayXd& logps,
                           const Eigen::ArrayXd& advantages);

/// A prompt whose completions are one action each. A softmax policy has a logit for each of them.
struct Bandit {
  Eigen::ArrayXd logps, rewards;      ///< [actions]
  Eigen::ArrayXd sampler_logps = {};  ///< of the policy that draws; empty: the policy itself
};

/// Returns the gradient in the logits of the mean reward.
Eigen::ArrayXd true_gradient(const Bandit& bandit);

/// Mean and trace of the covariance of an ascent direction in the logits.
struct GradientMoments {
  Eigen::ArrayXd mean;
  double variance = 0;
};

/// Returns the moments of the objective's negative gradient over all groups of `size` actions, each
/// group a whole step.
GradientMoments group_gradient(const Advantage& advantage, const TokenObjective& objective,
                               const Bandit& bandit, Eigen::Index size);

/// Returns a · b / (|a| |b|).
double cosine(const Eigen::ArrayXd& a, const Eigen::ArrayXd& b);

}  // namespace prefopt::lab
