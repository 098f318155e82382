// SPDX-License-Identifier: Apache-2.0
#include "policy/output_head.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full_like.h>

#include "kernels/block_tensor.h"
#include "math/wide_gradient.h"

namespace prefopt::detail {

bool is_neutral(const LogitTransform& transform) {
  return transform.scale == 1 && transform.softcap == 0 && transform.temperature == 1;
}

at::Tensor logits_of(const OutputHead& head, const at::Tensor& hidden) {
  const at::Tensor logits = kernels::product(hidden, whole(head.weight));
  if (head.bias.defined()) logits.add_(head.bias.to(logits.scalar_type()));
  transform_logits_(logits, head.transform);
  return logits;
}

void transform_logits_(const at::Tensor& raw, const LogitTransform& transform) {
  if (is_neutral(transform)) return;
  const auto& [scale, softcap, temperature] = transform;
  if (softcap == 0) {
    raw.mul_(scale / temperature);
  } else {
    raw.mul_(scale / softcap).tanh_().mul_(softcap / temperature);
  }
}

at::Tensor transform_slope(const at::Tensor& logits, const LogitTransform& transform) {
  const auto& [scale, softcap, temperature] = transform;
  if (softcap == 0) return at::full_like(logits, scale / temperature);
  return (1 - (logits * (temperature / softcap)).square()) * (scale / temperature);
}

}  // namespace prefopt::detail
