// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <functional>

#include "prefopt/exact/objective.h"
#include "prefopt/export.h"

namespace prefopt::exact {

struct MinimizeOptions {
  double gradient_tolerance = 1e-12;  ///< stop where no derivative is larger
  int max_iterations = 200;
};

struct Minimum {
  Eigen::VectorXd theta;
  double value = 0;
  double gradient_norm = 0;  ///< largest derivative
  int iterations = 0;
  bool converged = false;  ///< gradient_norm is within the tolerance
};

/// Minimizes by Newton's method with Levenberg's damping: steps -(H + lambda I)^-1 g, with lambda
/// raised until the step gains as predicted, and lowered afterwards. Near the minimum, where gains
/// are below rounding, a step is kept if the gradient shrinks, so that the last digits are reached
/// too. Works if H is singular (tabular policies: a constant can be added to a prompt's logits) or
/// not positive. An objective without a minimum, such as DPO's on deterministic preferences, is
/// followed until its gradient is within the tolerance.
PREFOPT_API Minimum minimize(const Objective& objective, Eigen::VectorXd start,
                             const MinimizeOptions& options = {});

/// Takes `steps` of plain gradient descent, as training does: `seen(step, theta)` is called before
/// the first step and after each. Returns the last theta.
PREFOPT_API Eigen::VectorXd descend(
    const Objective& objective, Eigen::VectorXd start, double learning_rate, int steps,
    const std::function<void(int, const Eigen::VectorXd&)>& seen = {});

}  // namespace prefopt::exact
