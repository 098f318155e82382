// SPDX-License-Identifier: Apache-2.0
#include "math/wide_gradient.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/embedding_dense_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include "math/given_back.h"
#include "math/sliced_weight.h"

namespace prefopt::detail {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class Widen : public torch::autograd::Function<Widen> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& parameter,
                            at::ScalarType dtype) {
    context->save_for_backward({parameter});
    const HeldWeights held(parameter);
    return parameter.to(dtype, /*non_blocking=*/false, /*copy=*/true);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    return {settled_gradient(context->get_saved_variables()[0], grads[0]), at::Tensor()};
  }
};

class WidenRows : public torch::autograd::Function<WidenRows> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& matrix,
                            const at::Tensor& ids, at::ScalarType dtype) {
    context->save_for_backward({matrix, ids});
    const HeldWeights held(matrix);
    return at::embedding(matrix, ids).to(dtype);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const at::NoGradGuard first_order_only;
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& matrix = saved[0];
    const at::Tensor& ids = saved[1];
    if (at::Tensor sum = wide_gradient(matrix); sum.defined()) {
      sum.index_add_(0, ids, grads[0]);
      return variable_list(3);
    }
    const at::Tensor sum = at::embedding_dense_backward(
        grads[0], ids, matrix.size(0), /*padding_idx=*/-1, /*scale_grad_by_freq=*/false);
    return {sum.to(matrix.scalar_type()), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

bool is_narrow(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

at::ScalarType at_least_float32(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor wide_gradient(const at::Tensor& parameter) {
  if (!is_narrow(parameter.scalar_type())) return {};
  if (parameter.is_view() && !parameter.is_leaf() && parameter._base().is_leaf()) {
    const at::Tensor whole(parameter._base());
    const at::Tensor sum = wide_gradient(whole);
    if (!sum.defined()) return {};
    return sum.as_strided(parameter.sizes(), parameter.strides(),
                          parameter.storage_offset() - whole.storage_offset());
  }
  if (!parameter.is_leaf()) return {};
  const at::Tensor& sum = parameter.grad();
  const bool is_wide = sum.defined() && sum.scalar_type() == at::kFloat && sum.is_contiguous();
  if (!is_wide) return {};
  if (!has_memory(sum)) take_zeroed_memory(sum);
  return sum;
}

at::Tensor settled_gradient(const at::Tensor& parameter, const at::Tensor& gradient) {
  if (!gradient.defined() || gradient.scalar_type() == parameter.scalar_type()) return gradient;
  at::Tensor sum = wide_gradient(parameter);
  if (!sum.defined()) return gradient.to(parameter.scalar_type());
  const at::NoGradGuard no_grad;
  sum.add_(gradient);
  return {};
}

at::Tensor widened(const at::Tensor& parameter, at::ScalarType dtype) {
  const bool is_at_hand = parameter.scalar_type() == dtype && !is_sliced(parameter);
  return is_at_hand ? parameter : Widen::apply(parameter, dtype);
}

at::Tensor whole(const at::Tensor& parameter) {
  return widened(parameter, parameter.scalar_type());
}

at::Tensor widened_rows(const at::Tensor& matrix, const at::Tensor& ids, at::ScalarType dtype) {
  const bool is_at_hand = matrix.scalar_type() == dtype && !is_sliced(matrix);
  return is_at_hand ? at::embedding(matrix, ids) : WidenRows::apply(matrix, ids, dtype);
}

}  // namespace prefopt::detail
