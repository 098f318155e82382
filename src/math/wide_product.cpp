// SPDX-License-Identifier: Apache-2.0
#include "math/wide_product.h"

#include <ATen/ops/mm.h>
#include <torch/version.h>

#include "math/wide_gradient.h"

namespace prefopt::detail {

at::Tensor wide_product(const at::Tensor& a, const at::Tensor& b) {
  if (!is_narrow(a.scalar_type())) return at::mm(a, b);
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 8
  if (a.is_cuda()) return at::mm(a, b, at::kFloat);
#endif
  return at::mm(a.to(at::kFloat), b.to(at::kFloat));
}

}  // namespace prefopt::detail
