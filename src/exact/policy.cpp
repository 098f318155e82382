// SPDX-License-Identifier: Apache-2.0
#include "prefopt/exact/policy.h"

#include <fmt/format.h>

#include <utility>

#include "prefopt/error.h"
#include "prefopt/exact/measures.h"

namespace prefopt::exact {

SoftmaxPolicy::SoftmaxPolicy(const Table& base, bool tabular, Eigen::MatrixXd features)
    : base_(base), tabular_(tabular), features_(std::move(features)) {
  if (base.size() == 0) {
    throw ShapeError(
        fmt::format("policy: expected base logits of at least one action and prompt, got [{}, {}]",
                    base.rows(), base.cols()));
  }
  if (!base.isFinite().all()) {
    throw ConfigError("policy: expected finite base logits, got some that are not");
  }
}

SoftmaxPolicy SoftmaxPolicy::tabular(const Table& base) { return {base, true, {}}; }

SoftmaxPolicy SoftmaxPolicy::log_linear(const Table& base, Eigen::MatrixXd features) {
  if (features.rows() != base.size() || features.cols() == 0) {
    throw ShapeError(fmt::format(
        "policy: expected features of shape [{}, d] for {} actions of {} prompts, got [{}, {}]",
        base.size(), base.rows(), base.cols(), features.rows(), features.cols()));
  }
  return {base, false, std::move(features)};
}

Table SoftmaxPolicy::logps(const Eigen::VectorXd& theta) const {
  if (theta.size() != parameters()) {
    throw ShapeError(
        fmt::format("policy: expected {} parameters, got {}", parameters(), theta.size()));
  }
  const Eigen::VectorXd logits = tabular_ ? theta : Eigen::VectorXd(features_ * theta);
  return log_softmax(base_ + logits.reshaped(actions(), prompts()).array());
}

Eigen::VectorXd SoftmaxPolicy::pullback(const Table& logps, const Table& d_logps) const {
  const Table d_logits = d_logps - logps.exp().rowwise() * d_logps.colwise().sum();
  const Eigen::VectorXd flat = d_logits.reshaped().matrix();
  return tabular_ ? flat : Eigen::VectorXd(features_.transpose() * flat);
}

}  // namespace prefopt::exact
