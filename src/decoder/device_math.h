// SPDX-License-Identifier: Apache-2.0
#pragma once

// The functions of layer_math.h by LibTorch's operators, on any device: of dense tensors of
// float32, float64, bfloat16 or float16, with norms, rotations and gradients of weights in at least
// float32.

#include "decoder/layer_math.h"

namespace prefopt::detail::device_math {

Normed norm_forward(const at::Tensor& x, const at::Tensor& weight, const NormSpec& norm);
void norm_backward_(at::Tensor& grad, const at::Tensor& x, const at::Tensor& rstd,
                    const at::Tensor& weight, const NormSpec& norm, at::Tensor* weight_grad);
at::Tensor swiglu(Gate function, const at::Tensor& gate, const at::Tensor& up);
SwigluGradients swiglu_backward(Gate function, const at::Tensor& grad, const at::Tensor& gate,
                                const at::Tensor& up);
at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual);
void add_product(const at::Tensor& x, const at::Tensor& weight, at::Tensor& sum);
void add_input_product(const at::Tensor& grad, const at::Tensor& weight, at::Tensor& sum);
at::Tensor weight_product(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight);
void apply_rope_(const at::Tensor& x, const Rotary& rotary);
void apply_rope_backward_(const at::Tensor& x, const Rotary& rotary);

}  // namespace prefopt::detail::device_math
