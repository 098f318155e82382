// SPDX-License-Identifier: Apache-2.0
#include "decoder/device_math.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>

#include "math/wide_gradient.h"
#include "math/wide_product.h"

namespace prefopt::detail::device_math {
namespace {

at::Tensor wide(const at::Tensor& x) { return x.to(at_least_float32(x.scalar_type())); }

at::Tensor wide_factor(const at::Tensor& weight, const NormSpec& norm) {
  return norm.adds_one ? wide(weight) + 1 : wide(weight);
}

at::Tensor gated(Gate function, const at::Tensor& gate) {
  return function == Gate::kSilu ? at::silu(gate) : at::gelu(gate, "tanh");
}

at::Tensor gated_backward(Gate function, const at::Tensor& grad, const at::Tensor& gate) {
  return function == Gate::kSilu ? at::silu_backward(grad, gate)
                                 : at::gelu_backward(grad, gate, "tanh");
}

}  // namespace

Normed norm_forward(const at::Tensor& x, const at::Tensor& weight, const NormSpec& norm) {
  const auto dtype = x.scalar_type();
  const at::Tensor rstd = at::rsqrt(wide(x).square().mean(-1) + norm.eps);
  const at::Tensor normed = wide(x) * rstd.unsqueeze(-1);
  // Rounded as by rms_norm of network.h.
  const at::Tensor value =
      norm.adds_one ? normed * wide_factor(weight, norm) : weight * normed.to(dtype);
  return {value.to(dtype), rstd};
}

void norm_backward_(at::Tensor& grad, const at::Tensor& x, const at::Tensor& rstd,
                    const at::Tensor& weight, const NormSpec& norm, at::Tensor* weight_grad) {
  const at::Tensor scale = rstd.unsqueeze(-1);
  const at::Tensor normed = wide(x) * scale;
  const at::Tensor of_value = wide(grad);
  if (weight_grad != nullptr) {
    *weight_grad =
        settled_gradient(weight, (of_value * normed).reshape({-1, weight.size(0)}).sum(0));
  }
  const at::Tensor of_normed = of_value * wide_factor(weight, norm);
  const at::Tensor along = (of_normed * normed).mean(-1, /*keepdim=*/true);
  grad = ((of_normed - normed * along) * scale).to(x.scalar_type());
}

at::Tensor swiglu(Gate function, const at::Tensor& gate, const at::Tensor& up) {
  return gated(function, gate) * up;
}

SwigluGradients swiglu_backward(Gate function, const at::Tensor& grad, const at::Tensor& gate,
                                const at::Tensor& up) {
  const at::Tensor opened = gated(function, gate);
  return {gated_backward(function, grad * up, gate), grad * opened, opened * up};
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual) {
  const at::Tensor turned = weight.to(x.scalar_type()).t();
  return residual.defined() ? at::addmm(residual, x, turned) : at::mm(x, turned);
}

void add_product(const at::Tensor& x, const at::Tensor& weight, at::Tensor& sum) {
  sum.addmm_(x, weight.to(x.scalar_type()).t());
}

void add_input_product(const at::Tensor& grad, const at::Tensor& weight, at::Tensor& sum) {
  const at::Tensor w = weight.to(grad.scalar_type());
  if (sum.defined()) {
    sum.addmm_(grad, w);
  } else {
    sum = at::mm(grad, w);
  }
}

at::Tensor weight_product(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight) {
  return settled_gradient(weight, wide_product(grad.t(), x));
}

void apply_rope_(const at::Tensor& x, const Rotary& rotary) {
  x.copy_(apply_rope(x, {rotary.cos.unsqueeze(1), rotary.sin.unsqueeze(1)}));
}

void apply_rope_backward_(const at::Tensor& x, const Rotary& rotary) {
  apply_rope_(x, {rotary.cos, -rotary.sin});
}

}  // namespace prefopt::detail::device_math
