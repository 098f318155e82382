// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <utility>

#include "prefopt/exact/policy.h"

namespace prefopt::lab {

/// Implicit rewards f = beta log(pi / ref) + constant of one prompt, each within [-most, most],
/// fitted to the pairs so far:
///   sum over pairs of log(1 + e^(f_rejected - f_chosen)) + sum_y w_y log(pi_y / ref_y),
/// with pi ~ ref e^(f / beta): dpo's loss and a value incentive (optimism for weights w > 0, as in
/// xpo and vpo). The incentive is not convex in f, and has a minimum only because f is bounded.
class BoundedFit {
 public:
  /// `ref` [actions, 1] log-probs.
  BoundedFit(exact::Table ref, double beta, double most);

  void add_pair(exact::Index chosen, exact::Index rejected) { pairs_(chosen, rejected) += 1; }
  void add_incentive(exact::Index action, double weight) { incentive_[action] += weight; }
  void set_incentive(Eigen::ArrayXd weights) { incentive_ = std::move(weights); }

  /// Projected Newton steps within the bounds from `start`, and where the incentive makes the sum
  /// concave in part, from there with each action at each bound; the least that was found. Actions
  /// without data or incentive stay, and so does the mean of actions that only their differences
  /// are known of.
  Eigen::ArrayXd minimize(const Eigen::ArrayXd& start) const;

  /// Gradient descent of log-ratios from `f`, on the mean over `rounds`, cut off at the bounds.
  Eigen::ArrayXd descend(Eigen::ArrayXd f, int steps, double rounds) const;

  double value(const Eigen::ArrayXd& f) const;
  Eigen::ArrayXd gradient(const Eigen::ArrayXd& f) const;
  exact::Table logps(const Eigen::ArrayXd& f) const;

 private:
  Eigen::MatrixXd curvature(const Eigen::ArrayXd& f) const;
  Eigen::ArrayXd newton_step(const Eigen::ArrayXd& f, const Eigen::ArrayXd& slopes) const;
  Eigen::ArrayXd local_minimum(Eigen::ArrayXd f) const;

  exact::Table ref_;
  double beta_, most_;
  Eigen::ArrayXXd pairs_;  ///< counts at (chosen, rejected)
  Eigen::ArrayXd incentive_;
};

}  // namespace prefopt::lab
