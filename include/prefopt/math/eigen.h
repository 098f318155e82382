// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
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
  static Array capped_expm1(const Array& x) { return x.unaryExpr(&Scalar::capped_expm1); }
  static Array tame_exp_slope(const Array& x) { return x.unaryExpr(&Scalar::tame_exp_slope); }

  static Array relu(const Array& x) { return x.max(0); }
  static Array is_positive(const Array& x) { return (x > 0).cast<double>(); }
  static Array log_at_least(const Array& x, double least) { return x.max(least).log(); }
  static Array log_odds(const Array& x) { return x.unaryExpr(&Scalar::log_odds); }
  static Array log_odds_slope(const Array& x) { return x.unaryExpr(&Scalar::log_odds_slope); }

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
  static Array sum_of_equal(const Array& x, const Array& keys) {
    return keys.unaryExpr([&](double key) { return (keys == key).select(x, 0).sum(); });
  }
  static Array sort_order(const Array& x) {
    Array order = Array::LinSpaced(x.size(), 0, static_cast<double>(x.size() - 1));
    std::stable_sort(order.begin(), order.end(),
                     [&](double a, double b) { return x[at(a)] < x[at(b)]; });
    return order;
  }
  static Array take(const Array& x, const Array& order) {
    return order.unaryExpr([&](double place) { return x[at(place)]; });
  }
  static Array put_back(const Array& x, const Array& order) {
    Array result(x.size());
    for (Eigen::Index i = 0; i < x.size(); ++i) result[at(order[i])] = x[i];
    return result;
  }

 private:
  // Places are kept as the array's own numbers, which are exact up to 2^53.
  static Eigen::Index at(double place) { return std::lround(place); }
};

}  // namespace prefopt::math
