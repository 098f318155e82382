// SPDX-License-Identifier: Apache-2.0
#pragma once

// The arithmetic of a layer apart from attention. On the CPU by its own kernels, on dense float32
// or float64 tensors, where the number of threads changes no bit; on other devices by
// device_math.h. Nothing is recorded for autograd.

#include <ATen/core/Tensor.h>

#include "decoder/network.h"

namespace prefopt::detail {

struct Normed {
  at::Tensor value;  ///< as x
  at::Tensor rstd;   ///< one for each last dimension of x
};

/// w x rstd with rstd = 1 / sqrt(mean(x²) + eps), over the last dimension; w is the weight, or 1 +
/// weight.
Normed norm_forward(const at::Tensor& x, const at::Tensor& weight, const NormSpec& norm);

/// The gradient of x in place of `grad`, on the CPU in its memory; that of the weight, settled, in
/// `weight_grad` unless it is null.
void norm_backward_(at::Tensor& grad, const at::Tensor& x, const at::Tensor& rstd,
                    const at::Tensor& weight, const NormSpec& norm, at::Tensor* weight_grad);

/// f(gate) · up.
at::Tensor swiglu(Gate function, const at::Tensor& gate, const at::Tensor& up);

struct SwigluGradients {
  at::Tensor gate, up;
  at::Tensor value;  ///< f(gate) · up once more
};
/// `grad`'s memory becomes that of the gradient of `up` on the CPU; gate and up are left alone.
SwigluGradients swiglu_backward_(Gate function, at::Tensor& grad, const at::Tensor& gate,
                                 const at::Tensor& up);

/// Adds `other` to `sum`, which is contiguous as `other` is. A backward pass leaves LibTorch's
/// operators one thread.
void add_rows_(at::Tensor& sum, const at::Tensor& other);

/// x Wᵀ, added to a copy of `residual` where that is defined. A bfloat16 weight is widened, and one
/// in blocks decoded, as it is read, one of float16 before.
at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual = {});

/// Adds x Wᵀ to `sum`, a dense matrix.
void add_product(const at::Tensor& x, const at::Tensor& weight, at::Tensor& sum);

/// grad W, added to `sum` where that is defined, else put there.
void add_input_product(const at::Tensor& grad, const at::Tensor& weight, at::Tensor& sum);

/// gradᵀ x as the gradient of `weight`, settled: a wide one takes the product as it comes.
at::Tensor weight_product(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight);

/// Rotates the beginning of each head of x [rows, heads, head_dim] by the angles of its row, in
/// place; backward, the gradient of the result into that of x.
void apply_rope_(at::Tensor& x, const Rotary& rotary);
void apply_rope_backward_(at::Tensor& x, const Rotary& rotary);

}  // namespace prefopt::detail
