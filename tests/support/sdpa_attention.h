// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "decoder/tree_attention.h"

namespace prefopt::testing_support {

/// tree_attention of LibTorch's pieces: a call of its flash attention for each part of the keys
/// that a block sees, merged by their logsumexps. An oracle of the tests and a peer of the
/// benchmark.
AttentionResult sdpa_attention(const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const std::vector<AttentionBlock>& blocks,
                               double scale);

/// `forward` is what sdpa_attention returned.
AttentionGradients sdpa_attention_backward(const at::Tensor& grad_output, const at::Tensor& query,
                                           const at::Tensor& key, const at::Tensor& value,
                                           const AttentionResult& forward,
                                           const std::vector<AttentionBlock>& blocks, double scale);

}  // namespace prefopt::testing_support
