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

/// Beyond this argument e^x goes on as its tangent, so that arguments up to 1e4 give finite values
/// (and finite squares of them) and a gradient that neither vanishes nor overflows.
inline constexpr double kExpLimitFloat = 30;
inline constexpr double kExpLimitDouble = 300;

/// The implementation for a number type, as static functions; specialized once for each.
template <class T>
struct Functions;

template <std::floating_point T>
struct Functions<T> {
  static constexpr T kExpLimit = T(sizeof(T) > sizeof(float) ? kExpLimitDouble : kExpLimitFloat);

  static T log_sigmoid(T x) { return std::min(x, T(0)) - std::log1p(std::exp(-std::abs(x))); }
  static T sigmoid(T x) {
    const T e = std::exp(-std::abs(x));
    return (x >= 0 ? T(1) : e) / (1 + e);
  }
  static T square(T x) { return x * x; }
  static T constant(T /*like*/, double value) { return static_cast<T>(value); }
  static T tame_expm1(T x) {
    const T low = std::min(x, kExpLimit);
    return std::expm1(low) + std::exp(low) * (x - low);
  }
  static T tame_exp_slope(T x) { return std::exp(std::min(x, kExpLimit)); }
};

/// log(1 / (1 + e^-x)), without overflow at either end.
template <class T>
T log_sigmoid(const T& x) {
  return Functions<T>::log_sigmoid(x);
}

/// 1 / (1 + e^-x)
template <class T>
T sigmoid(const T& x) {
  return Functions<T>::sigmoid(x);
}

template <class T>
T square(const T& x) {
  return Functions<T>::square(x);
}

/// `value` in the shape of `like`.
template <class T>
T constant(const T& like, double value) {
  return Functions<T>::constant(like, value);
}

/// e^x - 1, continued as its tangent above the limit.
template <class T>
T tame_expm1(const T& x) {
  return Functions<T>::tame_expm1(x);
}

/// Derivative of tame_expm1: e^min(x, limit).
template <class T>
T tame_exp_slope(const T& x) {
  return Functions<T>::tame_exp_slope(x);
}

// What follows exists for arrays only.

/// Whether `x` holds anything.
template <class T>
bool defined(const T& x) {
  return Functions<T>::defined(x);
}

template <class T>
std::int64_t length(const T& x) {
  return Functions<T>::length(x);
}

/// A double, or a zero-dimensional tensor (no device sync).
template <class T>
auto sum(const T& x) {
  return Functions<T>::sum(x);
}

/// `value` as what sum() returns.
template <class T>
auto scalar_like(const T& like, double value) {
  return Functions<T>::scalar_like(like, value);
}

/// Limits x to [-limit, limit].
template <class T>
T clamp(const T& x, double limit) {
  return Functions<T>::clamp(x, limit);
}

/// Sums of consecutive groups: [n * size] -> [n].
template <class T>
T group_sum(const T& x, std::int64_t size) {
  return Functions<T>::group_sum(x, size);
}

/// Each value `size` times side by side: [n] -> [n * size].
template <class T>
T spread(const T& x, std::int64_t size) {
  return Functions<T>::spread(x, size);
}

}  // namespace prefopt::math
