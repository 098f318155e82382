// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/math/functions.h"

// Links: scalar functions of delta = s_w - s_l (nats), value and derivative side by side. `T` is
// float, double, an Eigen array or a tensor.
namespace prefopt {

/// -a log sigmoid(beta delta) - b log sigmoid(-beta delta).
/// Derivative: beta (b sigmoid(beta delta) - a sigmoid(-beta delta)).
/// At delta = 0: (a + b) log 2. Tends to -a beta delta as delta falls, to b beta delta as it grows.
struct LogisticLink {
  double beta = 0.1;
  double a = 1;
  double b = 0;

  template <class T>
  T value(const T& delta) const {
    const T z = beta * delta;
    if (b == 0) return -a * math::log_sigmoid(z);
    return -a * math::log_sigmoid(z) - b * math::log_sigmoid(T(-z));
  }

  template <class T>
  T derivative(const T& delta) const {
    const T z = beta * delta;
    return beta * (b * math::sigmoid(z) - a * math::sigmoid(T(-z)));
  }
};

/// (delta - target)^2. Derivative: 2 (delta - target).
struct SquaredLink {
  double target = 0;

  template <class T>
  T value(const T& delta) const {
    return math::square(T(delta - target));
  }

  template <class T>
  T derivative(const T& delta) const {
    return 2 * (delta - target);
  }
};

}  // namespace prefopt
