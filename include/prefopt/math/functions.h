// SPDX-License-Identifier: Apache-2.0
#pragma once

// The functions that links, scores and regularizers are written in. One template of a formula
// serves float and double (here), Eigen arrays (math/eigen.h) and tensors (math/tensor.h).
//
// They are called qualified and with a value of the number type itself: `math::sigmoid(T(-z))`.
// That keeps at::sigmoid and Eigen's expression types out of the overload set.

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>

namespace prefopt::math {

/// Argument above which e^x continues as its tangent, so that arguments up to 1e4 give finite
/// values (and finite squares of them) and a gradient that neither vanishes nor overflows.
inline constexpr double kExpLimitFloat = 30;
inline constexpr double kExpLimitDouble = 300;

/// Distance from log 1 within which the log-odds of a probability continue as their tangent.
inline constexpr double kCertaintyFloat = 1e-5;
inline constexpr double kCertaintyDouble = 1e-10;

/// The implementation for a number type, as static functions; specialized once for each.
template <class T>
struct Functions;

template <std::floating_point T>
struct Functions<T> {
  static constexpr bool kIsDouble = sizeof(T) > sizeof(float);
  static constexpr T kExpLimit = T(kIsDouble ? kExpLimitDouble : kExpLimitFloat);
  static constexpr T kCertainty = T(kIsDouble ? kCertaintyDouble : kCertaintyFloat);

  static T log_sigmoid(T x) { return std::min(x, T(0)) - std::log1p(std::exp(-std::abs(x))); }
  static T sigmoid(T x) {
    const T e = std::exp(-std::abs(x));
    return (x >= 0 ? T(1) : e) / (1 + e);
  }
  static T square(T x) { return x * x; }
  static T constant(T /*like*/, double value) { return static_cast<T>(value); }
  static T capped_expm1(T x) {
    const T low = std::min(x, kExpLimit);
    return std::expm1(low) + std::exp(low) * (x - low);
  }
  static T tame_exp_slope(T x) { return std::exp(std::min(x, kExpLimit)); }
  static T relu(T x) { return std::max(x, T(0)); }
  static T clamp(T x, double limit) { return std::clamp(x, T(-limit), T(limit)); }
  static T is_positive(T x) { return x > 0 ? T(1) : T(0); }
  static T log_at_least(T x, double least) { return std::log(std::max(x, T(least))); }
  static T log_odds(T x) {
    const T low = std::min(x, -kCertainty);
    const T odds_slope = -1 / std::expm1(low);
    return low + std::log(odds_slope) + odds_slope * (x - low);
  }
  static T log_odds_slope(T x) { return -1 / std::expm1(std::min(x, -kCertainty)); }
};

/// Returns log(1 / (1 + e^-x)), without overflow at either end.
template <class T>
T log_sigmoid(const T& x) {
  return Functions<T>::log_sigmoid(x);
}

/// Returns 1 / (1 + e^-x).
template <class T>
T sigmoid(const T& x) {
  return Functions<T>::sigmoid(x);
}

template <class T>
T square(const T& x) {
  return Functions<T>::square(x);
}

/// Returns `value` in the shape of `like`.
template <class T>
T constant(const T& like, double value) {
  return Functions<T>::constant(like, value);
}

/// Returns e^x - 1, continued as its tangent above the limit.
template <class T>
T capped_expm1(const T& x) {
  return Functions<T>::capped_expm1(x);
}

/// Returns the derivative of capped_expm1, e^min(x, limit).
template <class T>
T tame_exp_slope(const T& x) {
  return Functions<T>::tame_exp_slope(x);
}

/// Returns max(x, 0).
template <class T>
T relu(const T& x) {
  return Functions<T>::relu(x);
}

/// Returns 1 where x > 0, else 0: the derivative of relu.
template <class T>
T is_positive(const T& x) {
  return Functions<T>::is_positive(x);
}

/// Returns log max(x, least), for numbers without a gradient.
template <class T>
T log_at_least(const T& x, double least) {
  return Functions<T>::log_at_least(x, least);
}

/// Returns log(p / (1 - p)) of x = log p < 0, continued as its tangent close to 0 and beyond.
template <class T>
T log_odds(const T& x) {
  return Functions<T>::log_odds(x);
}

/// Returns the derivative of log_odds, 1 / (1 - e^x).
template <class T>
T log_odds_slope(const T& x) {
  return Functions<T>::log_odds_slope(x);
}

// The rest exists for arrays only.

/// Returns whether `x` holds a value.
template <class T>
bool defined(const T& x) {
  return Functions<T>::defined(x);
}

template <class T>
std::int64_t length(const T& x) {
  return Functions<T>::length(x);
}

/// Returns a double, or a zero-dimensional tensor (no device sync).
template <class T>
auto sum(const T& x) {
  return Functions<T>::sum(x);
}

/// Returns `value` in the type of sum().
template <class T>
auto scalar_like(const T& like, double value) {
  return Functions<T>::scalar_like(like, value);
}

/// Limits x to [-limit, limit].
template <class T>
T clamp(const T& x, double limit) {
  return Functions<T>::clamp(x, limit);
}

/// Returns the sums of consecutive groups: [n * size] -> [n].
template <class T>
T group_sum(const T& x, std::int64_t size) {
  return Functions<T>::group_sum(x, size);
}

/// Repeats each value `size` times in a row: [n] -> [n * size].
template <class T>
T spread(const T& x, std::int64_t size) {
  return Functions<T>::spread(x, size);
}

/// Returns for each row the sum of `x` over the rows with its key, itself among them.
template <class T>
T sum_of_equal(const T& x, const T& keys) {
  return Functions<T>::sum_of_equal(x, keys);
}

/// Returns the places of the values in ascending order; equal ones keep their order.
template <class T>
T sort_order(const T& x) {
  return Functions<T>::sort_order(x);
}

/// Returns x[order[i]] at i.
template <class T>
T take(const T& x, const T& order) {
  return Functions<T>::take(x, order);
}

/// Returns x[i] at order[i], which undoes `take`.
template <class T>
T put_back(const T& x, const T& order) {
  return Functions<T>::put_back(x, order);
}

}  // namespace prefopt::math
