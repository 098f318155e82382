// SPDX-License-Identifier: Apache-2.0
#include "lab/bounded_fit.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "prefopt/exact/measures.h"
#include "prefopt/math/functions.h"

namespace prefopt::lab {

using Eigen::ArrayXd;
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

/// The part of value() that moves with f_y = x; `others` is sum ref e^(f / beta) without y.
double BoundedFit::along(const ArrayXd& f, Index y, double x, double others) const {
  double sum = 0;
  for (Index z = 0; z < f.size(); ++z) {
    if (pairs_(y, z) > 0) sum -= pairs_(y, z) * math::log_sigmoid(x - f[z]);
    if (pairs_(z, y) > 0) sum -= pairs_(z, y) * math::log_sigmoid(f[z] - x);
  }
  const double all = incentive_.sum();
  if (all != 0) {
    sum += incentive_[y] * x / beta_ - all * std::log(others + std::exp(ref_(y, 0) + x / beta_));
  }
  return sum;
}

double BoundedFit::best_coordinate(const ArrayXd& f, Index y) const {
  constexpr int kGrid = 12, kSections = 24;
  const double others = (ref_.col(0) + f / beta_).exp().sum() - std::exp(ref_(y, 0) + f[y] / beta_);
  const auto at = [&](double x) { return along(f, y, x, std::max(others, 0.0)); };
  const double spacing = 2 * most_ / kGrid;
  double best = f[y], least = at(best);
  const double here = least;
  for (int i = 0; i <= kGrid; ++i) {
    const double x = -most_ + i * spacing;
    if (const double value = at(x); value < least) {
      best = x;
      least = value;
    }
  }
  double low = std::max(best - spacing, -most_), high = std::min(best + spacing, most_);
  for (int i = 0; i < kSections; ++i) {
    const double part = (high - low) * (std::numbers::phi - 1);
    if (at(high - part) < at(low + part)) {
      high = low + part;
    } else {
      low = high - part;
    }
  }
  if (const double x = (low + high) / 2, value = at(x); value < least) {
    best = x;
    least = value;
  }
  // Flat where there are no data: stays.
  return least < here - 1e-13 * std::max(1.0, std::abs(here)) ? best : f[y];
}

ArrayXd BoundedFit::minimize(ArrayXd f) const {
  constexpr int kSweeps = 50;
  constexpr double kTolerance = 1e-5;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    double moved = 0;
    for (Index y = 0; y < f.size(); ++y) {
      const double best = best_coordinate(f, y);
      moved = std::max(moved, std::abs(best - f[y]));
      f[y] = best;
    }
    if (moved < kTolerance * most_) break;
  }
  return f;
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
