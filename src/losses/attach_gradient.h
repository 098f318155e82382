// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "prefopt/export.h"

namespace prefopt::detail {

/// Returns `value` with these derivatives in the inputs, which autograd then need not find itself.
PREFOPT_API at::Tensor attach_gradients(const std::vector<at::Tensor>& inputs,
                                        const at::Tensor& value, std::vector<at::Tensor> gradients);

}  // namespace prefopt::detail
