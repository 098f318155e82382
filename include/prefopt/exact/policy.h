// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#include "prefopt/export.h"

namespace prefopt::exact {

using Eigen::Index;

/// One number for each action (row) of each prompt (column): log-probs in nats, rewards, lengths.
using Table = Eigen::ArrayXXd;

/// Softmax policies over finitely many actions:
///   pi_theta(y|x) ~ exp(base(y, x) + phi(x, y) . theta)
/// so that theta = 0 is the softmax of `base`, most often the reference.
class PREFOPT_API SoftmaxPolicy {
 public:
  /// Returns a policy with a parameter for each action of each prompt: theta is the columns of a
  /// table one after the other. Throws ShapeError for an empty base, ConfigError for one that is
  /// not finite.
  static SoftmaxPolicy tabular(const Table& base);

  /// Returns a policy of `features` [actions * prompts, d]: phi(x, y) is row `actions * x + y`.
  /// Throws ShapeError for another number of rows, or no columns.
  static SoftmaxPolicy log_linear(const Table& base, Eigen::MatrixXd features);

  Index actions() const { return base_.rows(); }
  Index prompts() const { return base_.cols(); }
  Index parameters() const { return tabular_ ? base_.size() : features_.cols(); }

  /// Returns [actions, prompts] log pi_theta. Throws ShapeError for a theta of another length.
  Table logps(const Eigen::VectorXd& theta) const;

  /// Returns the gradient in theta of a function of the log-probs, from its derivatives at `logps`:
  ///   sum_xy d(y, x) (phi(x, y) - E_pi phi(x, .))
  Eigen::VectorXd pullback(const Table& logps, const Table& d_logps) const;

 private:
  SoftmaxPolicy(const Table& base, bool tabular, Eigen::MatrixXd features);

  Table base_;
  bool tabular_;
  Eigen::MatrixXd features_;
};

}  // namespace prefopt::exact
