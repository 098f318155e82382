// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention of many short sequences by the operators of LibTorch: one function, and what stands
// behind it on each device.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "decoder/tree_attention.h"

namespace prefopt::detail {

/// Consecutive queries and the consecutive keys that they see.
struct KeyedQueries {
  std::int64_t query, queries, key, keys;
  std::int64_t ahead;  ///< by how many places the first query comes after the first key
};

/// Sequences whose queries and whose keys follow one another without gaps, and their lengths as
/// operators take them.
struct SequenceList {
  std::vector<KeyedQueries> sequences;
  bool is_causal = false;  ///< query i of a sequence sees its keys up to i, else all
  std::int64_t most_queries = 0, most_keys = 0;
  at::Tensor query_ends, key_ends;  ///< [sequences + 1] int32 on the device, from 0 on

  /// Returns the list with its lengths on `device`.
  static SequenceList make(std::vector<KeyedQueries> sequences, bool is_causal, at::Device device);
};

enum class AttentionOperator {
  kFlash,      ///< CUDA: bfloat16 and float16
  kEfficient,  ///< CUDA: float32
  kFlashCpu,   ///< the CPU's flash attention, one call a sequence: every other device
  kPlain,      ///< scores in memory, one sequence at a time: soft-caps, windows, float64 on CUDA
};

/// Returns the operator for queries of this device, dtype and head size. `limits` are those that
/// change something.
AttentionOperator operator_for(const at::Tensor& query, const AttentionLimits& limits);

/// o and l of tree_attention.h over the keys of each query's sequence; l is −inf and o is 0 where
/// the window leaves none. query [Q, heads, D], key and value [K, kv_heads, D]; logsumexp [heads,
/// Q] in at least float32. Nothing is recorded for autograd. kFlash, kEfficient and kFlashCpu know
/// no limits.
AttentionResult attend_sequences(AttentionOperator by, const at::Tensor& query,
                                 const at::Tensor& key, const at::Tensor& value,
                                 const SequenceList& list, double scale,
                                 const AttentionLimits& limits);

/// Gradients of Σ grad_output · output, where `whole` is the result over these keys and any others:
/// its logsumexp makes the probabilities of all keys from the scores of these, and its output the
/// part of their gradient that is common to all keys of a query.
AttentionGradients attend_sequences_backward(AttentionOperator by, const at::Tensor& grad_output,
                                             const at::Tensor& query, const at::Tensor& key,
                                             const at::Tensor& value, const AttentionResult& whole,
                                             const SequenceList& list, double scale,
                                             const AttentionLimits& limits);

}  // namespace prefopt::detail
