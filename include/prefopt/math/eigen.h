// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <cstdint>

#include "prefopt/math/functions.h"

namespace prefopt::math {

template <>
struct Functions<Eigen::ArrayXd> {
  using Array = Eigen::ArrayXd;
  using Scalar = Functions<double>;

  static Array log_sigmoid(const Array& x) { return x.unaryExpr(&Scalar::log_sigmoid); }
  static Array sigmoid(const Array& x) { return x.unaryExpr(&Scalar::sigmoid); }
  static Array square(const Array& x) { return x.square(); }
  static Array constant(const Array& like, double value) {
    return Array::Constant(like.size(), value);
  }
  static Array tame_expm1(const Array& x) { return x.unaryExpr(&Scalar::tame_expm1); }
  static Array tame_exp_slope(const Array& x) { return x.unaryExpr(&Scalar::tame_exp_slope); }

  static bool defined(const Array& x) { return x.size() > 0; }
  static std::int64_t length(const Array& x) { return x.size(); }
  static double sum(const Array& x) { return x.sum(); }
  static double scalar_like(const Array& /*like*/, double value) { return value; }
  static Array clamp(const Array& x, double limit) { return x.max(-limit).min(limit); }
  static Array group_sum(const Array& x, std::int64_t size) {
    return x.reshaped(size, x.size() / size).colwise().sum().transpose();
  }
  static Array spread(const Array& x, std::int64_t size) {
    return x.transpose().replicate(size, 1).reshaped();
  }
};

}  // namespace prefopt::math
