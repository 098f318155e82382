// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

// The operators alone: without the macro their header includes every function of ATen.
#ifndef AT_PER_OPERATOR_HEADERS
#define AT_PER_OPERATOR_HEADERS
#include <ATen/TensorOperators.h>
#undef AT_PER_OPERATOR_HEADERS
#else
#include <ATen/TensorOperators.h>
#endif

#include <cstdint>

#include "prefopt/export.h"
#include "prefopt/math/functions.h"

namespace prefopt::math {

template <>
struct PREFOPT_API Functions<at::Tensor> {
  static at::Tensor log_sigmoid(const at::Tensor& x);
  static at::Tensor sigmoid(const at::Tensor& x);
  static at::Tensor square(const at::Tensor& x);
  static at::Tensor constant(const at::Tensor& like, double value);
  static at::Tensor capped_expm1(const at::Tensor& x);
  static at::Tensor tame_exp_slope(const at::Tensor& x);
  static at::Tensor relu(const at::Tensor& x);
  static at::Tensor is_positive(const at::Tensor& x);
  static at::Tensor log_at_least(const at::Tensor& x, double least);
  static at::Tensor log_odds(const at::Tensor& x);
  static at::Tensor log_odds_slope(const at::Tensor& x);

  static bool defined(const at::Tensor& x) { return x.defined(); }
  static std::int64_t length(const at::Tensor& x) { return x.defined() ? x.size(0) : 0; }
  static at::Tensor sum(const at::Tensor& x);
  static at::Tensor scalar_like(const at::Tensor& like, double value);
  static at::Tensor clamp(const at::Tensor& x, double limit);
  static at::Tensor group_sum(const at::Tensor& x, std::int64_t size);
  static at::Tensor spread(const at::Tensor& x, std::int64_t size);
  static at::Tensor sum_of_equal(const at::Tensor& x, const at::Tensor& keys);
  static at::Tensor sort_order(const at::Tensor& x);
  static at::Tensor take(const at::Tensor& x, const at::Tensor& order);
  static at::Tensor put_back(const at::Tensor& x, const at::Tensor& order);
};

}  // namespace prefopt::math
