// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace prefopt {

/// Queries [query, query + length) of the query stream are rows [key, key + length) of the key
/// stream. They see all of keys [prefix, prefix + prefix_length), all of the `past` keys right
/// before their own, [key - past, key), and, causally, their own. Sequences that share a prompt are
/// the prompt's block and one block each whose prefix is the prompt's rows; a step of decoding is a
/// block of length 1 a sequence, whose past is what the sequence generated so far.
struct AttentionBlock {
  std::int64_t query = 0, key = 0, length = 0, prefix = 0, prefix_length = 0, past = 0;
};

/// How far attention goes, and how high.
struct AttentionLimits {
  std::int64_t window = 0;  ///< keys that a query sees back, its own included; 0: all
  double softcap = 0;       ///< c: scores are c tanh(s / c); 0: none
};

struct AttentionResult {
  at::Tensor output;     ///< [Nq, heads, head_dim]
  at::Tensor logsumexp;  ///< [heads, Nq] float64, natural logarithm, of the scores
};

/// Attention over packed rows, where the blocks say who sees whom:
///   s_ij = scale · q_i · k_j,  l_i = log Σ_j e^(s_ij),  o_i = Σ_j e^(s_ij − l_i) v_j
/// over the keys j that query i sees, of which `limits` leave the last ones, counted along prefix,
/// past and own keys; s_ij is capped before all that. query is [Nq, heads, head_dim]; key and value
/// are [Nk, kv_heads, head_dim], and head h uses the kv head h / (heads / kv_heads). All are
/// float32 or float64 on the CPU; rows may lie apart (views of a fused buffer), the numbers of a
/// row may not. Each query is in exactly one block. Results do not depend on the number of threads.
/// Throws ShapeError, DtypeError and DeviceError. Nothing is recorded for autograd.
AttentionResult tree_attention(const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const std::vector<AttentionBlock>& blocks,
                               double scale, const AttentionLimits& limits = {});

struct AttentionGradients {
  at::Tensor query, key, value;  ///< dense, in the shapes of the inputs
};

/// Gradients of Σ grad_output · output. `forward` is what tree_attention returned for the inputs.
/// Keys that nobody sees get zeros. In addition to the results it takes memory for gradients of all
/// keys that each block sees, up to four times for long blocks.
AttentionGradients tree_attention_backward(const at::Tensor& grad_output, const at::Tensor& query,
                                           const at::Tensor& key, const at::Tensor& value,
                                           const AttentionResult& forward,
                                           const std::vector<AttentionBlock>& blocks, double scale,
                                           const AttentionLimits& limits = {});

}  // namespace prefopt
