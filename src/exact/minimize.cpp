// SPDX-License-Identifier: Apache-2.0
#include "prefopt/exact/minimize.h"

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace prefopt::exact {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;
using Evaluation = Objective::Evaluation;

constexpr double kFirstDamping = 1e-4;
constexpr double kLeastDamping = 1e-15;
constexpr double kMostDamping = 1e12;

double largest(const VectorXd& gradient) { return gradient.lpNorm<Eigen::Infinity>(); }

bool is_progress(const Evaluation& before, const Evaluation& after, double promised) {
  if (!std::isfinite(after.value) || !after.gradient.allFinite()) return false;
  const double gain = before.value - after.value;
  if (gain > 1e-4 * promised && promised > 0) return true;
  const double rounding =
      16 * std::numeric_limits<double>::epsilon() * std::max(1e-30, std::abs(before.value));
  return std::abs(gain) <= rounding && largest(after.gradient) < largest(before.gradient);
}

}  // namespace

Minimum minimize(const Objective& objective, VectorXd start, const MinimizeOptions& options) {
  VectorXd theta = std::move(start);
  Evaluation here = objective.evaluate(theta);
  double damping = kFirstDamping;
  int iteration = 0;
  for (; iteration < options.max_iterations; ++iteration) {
    if (largest(here.gradient) <= options.gradient_tolerance) break;
    const MatrixXd hessian = objective.hessian(theta);
    // Relative to the curvature, so that the scale of a loss does not matter.
    const double scale = std::max(hessian.diagonal().cwiseAbs().maxCoeff(), 1e-300);
    bool moved = false;
    while (!moved && damping <= kMostDamping) {
      MatrixXd damped = hessian;
      damped.diagonal().array() += damping * scale;
      const Eigen::LLT<MatrixXd> factors(damped);
      if (factors.info() == Eigen::Success) {
        const VectorXd step = -factors.solve(here.gradient);
        const double promised = -here.gradient.dot(step) / 2;
        Evaluation there = objective.evaluate(theta + step);
        if (is_progress(here, there, promised)) {
          theta += step;
          here = std::move(there);
          moved = true;
        }
      }
      damping = moved ? std::max(damping / 10, kLeastDamping) : damping * 10;
    }
    if (!moved) break;
  }
  const double norm = largest(here.gradient);
  return {std::move(theta), here.value, norm, iteration, norm <= options.gradient_tolerance};
}

VectorXd descend(const Objective& objective, VectorXd start, double learning_rate, int steps,
                 const std::function<void(int, const VectorXd&)>& seen) {
  VectorXd theta = std::move(start);
  if (seen) seen(0, theta);
  for (int step = 1; step <= steps; ++step) {
    theta -= learning_rate * objective.evaluate(theta).gradient;
    if (seen) seen(step, theta);
  }
  return theta;
}

}  // namespace prefopt::exact
