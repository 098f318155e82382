// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <vector>

#include "prefopt/exact/policy.h"
#include "prefopt/export.h"

namespace prefopt::exact {

/// P(a beats b | x) for all actions of all prompts.
class PREFOPT_API Preferences {
 public:
  /// Bradley-Terry: sigmoid(r(a, x) - r(b, x)).
  static Preferences bradley_terry(const Table& rewards);

  /// The better action always wins; equal ones win half the time.
  static Preferences deterministic(const Table& rewards);

  /// Takes a matrix [actions, actions] for each prompt with P(a beats b) at (a, b); it need not
  /// come from rewards. Throws ShapeError for matrices that are not square and of one size,
  /// ConfigError for a value outside [0, 1] or where P(a, b) + P(b, a) is not 1.
  static Preferences general(std::vector<Eigen::MatrixXd> probabilities);

  /// Returns the preferences under labels that are wrong at a rate: (1 - 2 rate) P + rate. Throws
  /// ConfigError unless 0 <= rate < 1/2.
  Preferences flipped(double rate) const;

  double operator()(Index prompt, Index a, Index b) const {
    return probabilities_[static_cast<std::size_t>(prompt)](a, b);
  }
  const Eigen::MatrixXd& of(Index prompt) const {
    return probabilities_[static_cast<std::size_t>(prompt)];
  }
  Index prompts() const { return static_cast<Index>(probabilities_.size()); }
  Index actions() const { return probabilities_.front().rows(); }

 private:
  explicit Preferences(std::vector<Eigen::MatrixXd> probabilities)
      : probabilities_(std::move(probabilities)) {}

  std::vector<Eigen::MatrixXd> probabilities_;
};

}  // namespace prefopt::exact
