// SPDX-License-Identifier: Apache-2.0
#include "lab/bounded_fit.h"

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "prefopt/exact/measures.h"
#include "prefopt/math/functions.h"

namespace prefopt::lab {

using Eigen::ArrayXd;
using Eigen::MatrixXd;
using exact::Index;

BoundedFit::BoundedFit(exact::Table ref, double beta, double most)
    : ref_(std::move(ref)),
      beta_(beta),
      most_(most),
      pairs_(Eigen::ArrayXXd::Zero(ref_.rows(), ref_.rows())),
      incentive_(ArrayXd::Zero(ref_.rows())) {}

exact::Table BoundedFit::logps(const ArrayXd& f) const {
  return exact::log_softmax(ref_.col(0) + f / beta_);
}

double BoundedFit::value(const ArrayXd& f) const {
  double sum = (incentive_ * (logps(f).col(0) - ref_.col(0))).sum();
  for (Index w = 0; w < f.size(); ++w) {
    for (Index l = 0; l < f.size(); ++l) {
      if (pairs_(w, l) > 0) sum -= pairs_(w, l) * math::log_sigmoid(f[w] - f[l]);
    }
  }
  return sum;
}

ArrayXd BoundedFit::gradient(const ArrayXd& f) const {
  ArrayXd slopes = (incentive_ - incentive_.sum() * logps(f).col(0).exp()) / beta_;
  for (Index w = 0; w < f.size(); ++w) {
    for (Index l = 0; l < f.size(); ++l) {
      if (pairs_(w, l) == 0) continue;
      const double push = pairs_(w, l) * math::sigmoid(f[l] - f[w]);
      slopes[w] -= push;
      slopes[l] += push;
    }
  }
  return slopes;
}

/// Of the convex part of value(): pairs, and the incentive where its log-sum-exp is convex. With a
/// concave part left out steps are those of the convex-concave procedure.
MatrixXd BoundedFit::curvature(const ArrayXd& f) const {
  constexpr double kDamping = 1e-9;  // flat directions go to a bound in one step
  const Index actions = f.size();
  MatrixXd result = MatrixXd::Zero(actions, actions);
  for (Index w = 0; w < actions; ++w) {
    for (Index l = 0; l < actions; ++l) {
      if (pairs_(w, l) == 0) continue;
      const double p = math::sigmoid(f[w] - f[l]), bend = pairs_(w, l) * p * (1 - p);
      result(w, w) += bend;
      result(l, l) += bend;
      result(w, l) -= bend;
      result(l, w) -= bend;
    }
  }
  if (const double convex = -incentive_.sum(); convex > 0) {
    const Eigen::VectorXd p = logps(f).col(0).exp();
    result += convex / (beta_ * beta_) * (MatrixXd(p.asDiagonal()) - p * p.transpose());
  }
  result.diagonal().array() += kDamping * (1 + result.diagonal().maxCoeff());
  return result;
}

/// The Newton step of the coordinates that are not held at a bound; 0 for the others.
ArrayXd BoundedFit::newton_step(const ArrayXd& f, const ArrayXd& slopes) const {
  std::vector<Index> free;
  for (Index y = 0; y < f.size(); ++y) {
    const bool is_held = slopes[y] > 0 ? f[y] <= -most_ : f[y] >= most_;
    if (slopes[y] != 0 && !is_held) free.push_back(y);
  }
  ArrayXd step = ArrayXd::Zero(f.size());
  if (free.empty()) return step;
  const MatrixXd part = curvature(f)(free, free);
  step(free) = -part.ldlt().solve(slopes(free).matrix()).array();
  return step;
}

/// Projected Newton steps, each halved until it pays.
ArrayXd BoundedFit::local_minimum(ArrayXd f) const {
  constexpr int kSteps = 200, kHalvings = 40;
  constexpr double kTolerance = 1e-9, kSlope = 1e-4;
  double here = value(f);
  for (int i = 0; i < kSteps; ++i) {
    const ArrayXd slopes = gradient(f), step = newton_step(f, slopes);
    ArrayXd next = f;
    double there = here, share = 1;
    for (int halving = 0; halving < kHalvings; ++halving, share /= 2) {
      next = (f + share * step).max(-most_).min(most_);
      there = value(next);
      if (there <= here + kSlope * (slopes * (next - f)).sum()) break;
      next = f;
    }
    if ((next - f).abs().maxCoeff() < kTolerance * most_) break;
    f = std::move(next);
    here = there;
  }
  return f;
}

ArrayXd BoundedFit::minimize(const ArrayXd& start) const {
  ArrayXd best = local_minimum(start);
  if (incentive_.sum() <= 0) return best;  // convex
  double least = value(best);
  for (Index y = 0; y < start.size(); ++y) {
    for (const double bound : {-most_, most_}) {
      ArrayXd other = best;
      other[y] = bound;
      other = local_minimum(std::move(other));
      // Of minima that are as good the nearest is kept.
      if (const double found = value(other);
          found < least - 1e-10 * std::max(1.0, std::abs(least))) {
        best = std::move(other);
        least = found;
      }
    }
  }
  return best;
}

ArrayXd BoundedFit::descend(ArrayXd f, int steps, double rounds) const {
  constexpr double kRate = 2;  // in log-ratios 2 / beta^2, as in vpo-regret
  for (int step = 0; step < steps; ++step) {
    f -= kRate / rounds * gradient(f);
    f = f.max(-most_).min(most_);
  }
  return f;
}

}  // namespace prefopt::lab
