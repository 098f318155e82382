// SPDX-License-Identifier: Apache-2.0
#include "support/eager.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Reduction.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/stack.h>

#include <vector>

namespace prefopt::bench::eager {

at::Tensor log_softmax_gather(const at::Tensor& logits, const at::Tensor& targets) {
  return at::log_softmax(logits, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1);
}

at::Tensor gather_logsumexp(const at::Tensor& logits, const at::Tensor& targets) {
  return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - at::logsumexp(logits, -1);
}

at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& targets) {
  return at::cross_entropy_loss(logits, targets, {}, at::Reduction::None).neg();
}

at::Tensor trl_selective_log_softmax(const at::Tensor& logits, const at::Tensor& targets,
                                     std::int64_t sequences) {
  const at::Tensor batch = logits.view({sequences, -1, logits.size(1)});
  const at::Tensor index = targets.view({sequences, -1, 1});
  std::vector<at::Tensor> parts;
  if (logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kDouble) {
    const at::Tensor selected = at::gather(batch, -1, index);
    for (const at::Tensor& sequence : batch.unbind()) {
      parts.push_back(at::logsumexp(sequence, -1));
    }
    return (selected - at::stack(parts).unsqueeze(-1)).squeeze(-1).reshape({-1});
  }
  const std::vector<at::Tensor> labels = index.unbind();
  for (const at::Tensor& sequence : batch.unbind()) {
    parts.push_back(at::log_softmax(sequence, -1).gather(-1, labels[parts.size()]));
  }
  return at::stack(parts).squeeze(-1).reshape({-1});
}

}  // namespace prefopt::bench::eager
