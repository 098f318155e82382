// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <vector>

#include "prefopt/export.h"

namespace prefopt::detail {

/// Returns `value` with these derivatives in the inputs, which autograd then need not find itself.
PREFOPT_API at::Tensor attach_gradients(const std::vector<at::Tensor>& inputs,
                                        const at::Tensor& value, std::vector<at::Tensor> gradients);

/// An input of a loss and the derivative in it, undefined where there is none.
struct InputGradient {
  at::Tensor input, gradient;
};

/// The same of those inputs that require a gradient and have one.
PREFOPT_API at::Tensor attach_wanted_gradients(std::initializer_list<InputGradient> all,
                                               const at::Tensor& value);

/// Puts the values of defined tensors in their place, in float64 on `device` and without a graph.
PREFOPT_API void detach_wide(std::initializer_list<at::Tensor*> tensors, at::Device device);

}  // namespace prefopt::detail
