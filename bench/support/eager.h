// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

// The peers' ways to log-probs, as calls of LibTorch. logits [rows, vocab], targets [rows]; what
// they return has the dtype of the logits, as there.
namespace prefopt::bench::eager {

at::Tensor log_softmax_gather(const at::Tensor& logits, const at::Tensor& targets);
at::Tensor gather_logsumexp(const at::Tensor& logits, const at::Tensor& targets);
at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& targets);

/// trl.trainer.utils.selective_log_softmax of TRL 1.16 on a CPU, which loops over the sequences of
/// its [sequences, tokens, vocab]; `rows` is cut into `sequences` of equal length.
at::Tensor trl_selective_log_softmax(const at::Tensor& logits, const at::Tensor& targets,
                                     std::int64_t sequences);

}  // namespace prefopt::bench::eager
