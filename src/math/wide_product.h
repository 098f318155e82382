// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace prefopt::detail {

/// Returns a b, [m, n], of two matrices of one dtype: float64 of float64, else float32. bfloat16
/// and float16 are multiplied as they are where LibTorch's product of the device can leave its
/// float32 sums unrounded, and widened first elsewhere.
at::Tensor wide_product(const at::Tensor& a, const at::Tensor& b);

}  // namespace prefopt::detail
