// SPDX-License-Identifier: Apache-2.0
#pragma once

// Gradients wider than their parameter. A bfloat16 or float16 parameter may have a float32 tensor
// as its `.grad`, to which every backward pass adds. Autograd rounds what it gets to the
// parameter's dtype before it adds, so nodes that have a float32 sum add it themselves.

#include <ATen/core/Tensor.h>

namespace prefopt::detail {

/// Returns whether this dtype holds too few digits for sums over training: bfloat16, float16.
bool is_narrow(at::ScalarType dtype);

/// Returns float64 for float64, else float32: the dtype in which sums are made.
at::ScalarType at_least_float32(at::ScalarType dtype);

/// Returns the parameter's `.grad` where it is wider than the parameter, dense and float32: a
/// backward node may add its gradient there and give autograd nothing. Undefined otherwise. Of a
/// view of a parameter, the same part of its `.grad`. One that has given its memory back
/// (math/given_back.h) has zeros from here on.
at::Tensor wide_gradient(const at::Tensor& parameter);

/// Returns what a backward node gives autograd for `parameter`: the gradient in the parameter's
/// dtype, or nothing where the parameter's `.grad` is wider and has taken it as it is.
at::Tensor settled_gradient(const at::Tensor& parameter, const at::Tensor& gradient);

/// Returns the parameter in `dtype`. Its gradient is settled, not rounded first. Of a sliced one
/// (math/sliced_weight.h) a copy, which may be read after the parameter is at rest again.
at::Tensor widened(const at::Tensor& parameter, at::ScalarType dtype);

/// The same in the parameter's own dtype.
at::Tensor whole(const at::Tensor& parameter);

/// Returns rows of a matrix in `dtype`, [ids, columns]. The gradient is summed up in `dtype`, where
/// autograd's would be in that of the matrix.
at::Tensor widened_rows(const at::Tensor& matrix, const at::Tensor& ids, at::ScalarType dtype);

}  // namespace prefopt::detail
