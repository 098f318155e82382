// SPDX-License-Identifier: Apache-2.0
#include "decoder/layer_math.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <functional>

#include "core/memory_pool.h"
#include "core/parallel.h"
#include "decoder/device_math.h"
#include "kernels/block_tensor.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/linear.h"
#include "math/wide_gradient.h"

namespace prefopt::detail {
namespace {

namespace cpu = kernels::cpu;

// Calls f with a number of the tensor's type.
template <class F>
void with_type_of(const at::Tensor& tensor, F&& f) {
  if (tensor.scalar_type() == at::kDouble) {
    f(double());
  } else {
    f(float());
  }
}

template <class T>
cpu::Rows<const T> rows_of(const at::Tensor& tensor, std::int64_t stride) {
  return {tensor.const_data_ptr<T>(), stride};
}

template <class T>
cpu::Rows<T> mutable_rows_of(const at::Tensor& tensor, std::int64_t stride) {
  return {tensor.mutable_data_ptr<T>(), stride};
}

// Calls f with a number of the type of `x`, a value of the weight's type, and the weight in that
// type as the kernels read it.
template <class F>
void with_weight(const at::Tensor& x, const at::Tensor& weight, F&& f) {
  if (const kernels::StoredBlocks* blocks = kernels::blocks_of(weight)) {
    f(float(), cpu::BlockMatrix(), blocks->matrix);
  } else if (x.scalar_type() == at::kDouble) {
    const at::Tensor wide = weight.to(at::kDouble);
    f(double(), double(), rows_of<double>(wide, wide.stride(0)));
  } else if (weight.scalar_type() == at::kBFloat16) {
    f(float(), c10::BFloat16(), rows_of<c10::BFloat16>(weight, weight.stride(0)));
  } else {
    const at::Tensor wide = weight.to(at::kFloat);
    f(float(), float(), rows_of<float>(wide, wide.stride(0)));
  }
}

// Steps ask for the same buffers again and again.
at::Tensor empty_as(const at::Tensor& x) { return empty_from_pool(x.sizes(), x.scalar_type()); }
at::Tensor empty_matrix(std::int64_t rows, std::int64_t columns, const at::Tensor& like) {
  return empty_from_pool({rows, columns}, like.scalar_type());
}

std::int64_t width_of(const at::Tensor& x) { return x.size(-1); }
std::int64_t count_of(const at::Tensor& x) { return x.numel() / x.size(-1); }

template <class T>
void rope(at::Tensor& x, const Rotary& rotary, bool backward) {
  const std::int64_t stride = x.size(1) * x.size(2);
  const std::int64_t half = rotary.cos.size(-1);
  const cpu::Rotary<T> work{.rows = x.size(0),
                            .heads = x.size(1),
                            .head_dim = x.size(2),
                            .x = mutable_rows_of<T>(x, stride),
                            .cos = rows_of<T>(rotary.cos, half),
                            .sin = rows_of<T>(rotary.sin, half),
                            .rotated = 2 * half};
  backward ? cpu::apply_rope_backward_(work) : cpu::apply_rope_(work);
}

// Returns the factor of the norm, in the dtype of x.
at::Tensor factor_of(const at::Tensor& x, const at::Tensor& weight, const NormSpec& norm) {
  const at::Tensor w = weight.to(x.scalar_type());
  return norm.adds_one ? w + 1 : w;
}

// y (+)= x Wᵀ.
void multiply_into(const at::Tensor& x, const at::Tensor& weight, at::Tensor& y, bool accumulate) {
  const cpu::LinearSizes sizes{.rows = x.size(0), .in = x.size(1), .out = weight.size(0)};
  with_weight(x, weight, [&](auto number, auto narrow, const auto& w) {
    using T = decltype(number);
    using Weight = decltype(narrow);
    cpu::linear_forward<T, Weight>({.sizes = sizes,
                                    .x = rows_of<T>(x, x.stride(0)),
                                    .weight = w,
                                    .y = mutable_rows_of<T>(y, sizes.out),
                                    .accumulate = accumulate});
  });
}

}  // namespace

Normed norm_forward(const at::Tensor& x, const at::Tensor& weight, const NormSpec& norm) {
  if (!x.is_cpu()) return device_math::norm_forward(x, weight, norm);
  Normed normed{empty_as(x), at::empty(x.sizes().slice(0, x.dim() - 1), x.options())};
  const std::int64_t width = width_of(x);
  const at::Tensor w = factor_of(x, weight, norm);
  with_type_of(x, [&](auto number) {
    using T = decltype(number);
    cpu::rms_norm<T>({.shape = {.rows = count_of(x), .width = width},
                      .x = rows_of<T>(x, width),
                      .weight = w.const_data_ptr<T>(),
                      .eps = norm.eps,
                      .y = mutable_rows_of<T>(normed.value, width),
                      .rstd = normed.rstd.mutable_data_ptr<T>()});
  });
  return normed;
}

void norm_backward_(at::Tensor& grad, const at::Tensor& x, const at::Tensor& rstd,
                    const at::Tensor& weight, const NormSpec& norm, at::Tensor* weight_grad) {
  if (!x.is_cpu()) {
    return device_math::norm_backward_(grad, x, rstd, weight, norm, weight_grad);
  }
  const std::int64_t width = width_of(x);
  const at::Tensor w = factor_of(x, weight, norm);
  if (weight_grad != nullptr) *weight_grad = at::zeros_like(w);
  with_type_of(x, [&](auto number) {
    using T = decltype(number);
    cpu::rms_norm_backward<T>(
        {.shape = {.rows = count_of(x), .width = width},
         .dy = rows_of<T>(grad, width),
         .x = rows_of<T>(x, width),
         .rstd = rstd.const_data_ptr<T>(),
         .weight = w.const_data_ptr<T>(),
         .dx = mutable_rows_of<T>(grad, width),
         .dw = weight_grad == nullptr ? nullptr : weight_grad->mutable_data_ptr<T>()});
  });
  if (weight_grad != nullptr) *weight_grad = settled_gradient(weight, *weight_grad);
}

at::Tensor swiglu(Gate function, const at::Tensor& gate, const at::Tensor& up) {
  if (!gate.is_cpu()) return device_math::swiglu(function, gate, up);
  at::Tensor value = empty_as(gate);
  const std::int64_t width = width_of(gate);
  with_type_of(gate, [&](auto number) {
    using T = decltype(number);
    cpu::swiglu<T>({.rows = count_of(gate),
                    .width = width,
                    .g = rows_of<T>(gate, width),
                    .u = rows_of<T>(up, width),
                    .h = mutable_rows_of<T>(value, width),
                    .gate = function});
  });
  return value;
}

SwigluGradients swiglu_backward_(Gate function, at::Tensor& grad, const at::Tensor& gate,
                                 const at::Tensor& up) {
  if (!gate.is_cpu()) return device_math::swiglu_backward(function, grad, gate, up);
  SwigluGradients gradients{empty_as(gate), grad, empty_as(gate)};
  const std::int64_t width = width_of(gate);
  with_type_of(gate, [&](auto number) {
    using T = decltype(number);
    cpu::swiglu_backward<T>({.rows = count_of(gate),
                             .width = width,
                             .dh = rows_of<T>(grad, width),
                             .g = rows_of<T>(gate, width),
                             .u = rows_of<T>(up, width),
                             .dg = mutable_rows_of<T>(gradients.gate, width),
                             .du = mutable_rows_of<T>(gradients.up, width),
                             .h = mutable_rows_of<T>(gradients.value, width),
                             .gate = function});
  });
  return gradients;
}

void add_rows_(at::Tensor& sum, const at::Tensor& other) {
  if (!sum.is_cpu()) {
    sum.add_(other);
    return;
  }
  constexpr std::int64_t kGrain = 1 << 14;
  with_type_of(sum, [&](auto number) {
    using T = decltype(number);
    T* into = sum.mutable_data_ptr<T>();
    const T* from = other.const_data_ptr<T>();
    parallel_for(0, sum.numel(), kGrain, [&](std::int64_t first, std::int64_t last) {
      std::transform(into + first, into + last, from + first, into + first, std::plus<T>());
    });
  });
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual) {
  if (!x.is_cpu()) return device_math::product(x, weight, residual);
  at::Tensor y = empty_matrix(x.size(0), weight.size(0), x);
  if (residual.defined()) y.copy_(residual);
  multiply_into(x, weight, y, /*accumulate=*/residual.defined());
  return y;
}

void add_product(const at::Tensor& x, const at::Tensor& weight, at::Tensor& sum) {
  if (!x.is_cpu()) return device_math::add_product(x, weight, sum);
  multiply_into(x, weight, sum, /*accumulate=*/true);
}

void add_input_product(const at::Tensor& grad, const at::Tensor& weight, at::Tensor& sum) {
  if (!grad.is_cpu()) return device_math::add_input_product(grad, weight, sum);
  const cpu::LinearSizes sizes{.rows = grad.size(0), .in = weight.size(1), .out = grad.size(1)};
  const bool accumulate = sum.defined();
  if (!accumulate) sum = empty_matrix(sizes.rows, sizes.in, grad);
  with_weight(grad, weight, [&](auto number, auto narrow, const auto& w) {
    using T = decltype(number);
    using Weight = decltype(narrow);
    cpu::linear_input_grad<T, Weight>({.sizes = sizes,
                                       .dy = rows_of<T>(grad, grad.stride(0)),
                                       .weight = w,
                                       .dx = mutable_rows_of<T>(sum, sum.stride(0)),
                                       .accumulate = accumulate});
  });
}

at::Tensor weight_product(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight) {
  if (!x.is_cpu()) return device_math::weight_product(grad, x, weight);
  const cpu::LinearSizes sizes{.rows = x.size(0), .in = x.size(1), .out = grad.size(1)};
  kernels::check_trainable(weight, "decoder");
  const at::Tensor sum = wide_gradient(weight);
  const at::Tensor dw = sum.defined() ? sum : empty_matrix(sizes.out, sizes.in, x);
  with_type_of(x, [&](auto number) {
    using T = decltype(number);
    cpu::linear_weight_grad<T>({.sizes = sizes,
                                .dy = rows_of<T>(grad, grad.stride(0)),
                                .x = rows_of<T>(x, x.stride(0)),
                                .dw = mutable_rows_of<T>(dw, sizes.in),
                                .accumulate = sum.defined()});
  });
  if (!sum.defined()) return settled_gradient(weight, dw);
  sum.unsafeGetTensorImpl()->bump_version();
  return {};
}

void apply_rope_(at::Tensor& x, const Rotary& rotary) {
  if (!x.is_cpu()) return device_math::apply_rope_(x, rotary);
  with_type_of(x, [&](auto number) { rope<decltype(number)>(x, rotary, false); });
}

void apply_rope_backward_(at::Tensor& x, const Rotary& rotary) {
  if (!x.is_cpu()) return device_math::apply_rope_backward_(x, rotary);
  with_type_of(x, [&](auto number) { rope<decltype(number)>(x, rotary, true); });
}

}  // namespace prefopt::detail
