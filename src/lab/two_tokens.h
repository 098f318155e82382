// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

namespace prefopt::lab {

/// Probabilities of a completion of two tokens: first[a], and second(a, b) of b after a.
struct TwoTokens {
  Eigen::ArrayXd first;
  Eigen::ArrayXXd second;

  /// Q(a): the mean reward of a continuation after a; rewards(a, b).
  Eigen::ArrayXd action_values(const Eigen::ArrayXXd& rewards) const {
    return (second * rewards).rowwise().sum();
  }
  double value(const Eigen::ArrayXXd& rewards) const {
    return (first * action_values(rewards)).sum();
  }
};

/// The value of the best first token before `guide` continues: AggreVaTeD's step, exact.
inline double one_step_value(const TwoTokens& guide, const Eigen::ArrayXXd& rewards) {
  return guide.action_values(rewards).maxCoeff();
}

}  // namespace prefopt::lab
