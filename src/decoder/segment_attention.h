// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention over packed rows on any device: that of tree_attention.h, by LibTorch's operators.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "decoder/attention_operators.h"
#include "decoder/tree_attention.h"

namespace prefopt::detail {

/// Blocks of a stream in two segments: of each query its block's own keys, and the prefix in front
/// of them. Blocks that share a prefix are one sequence of the second segment, so that it is read
/// once.
struct SegmentPlan {
  /// Some rows of the queries and of the keys, in sequences.
  struct Segment {
    at::Tensor query_rows, key_rows;  ///< int64 on the device; undefined: all as they are
    SequenceList list;

    bool is_empty() const { return list.sequences.empty(); }
  };

  Segment own, prefix;
  Segment prefix_by_block;   ///< where a window makes blocks with one prefix differ
  std::int64_t longest = 0;  ///< keys of the query that sees most

  /// The blocks, none of which has a past, list queries [0, `queries`) in order; keys are [0,
  /// `keys`).
  static SegmentPlan make(const std::vector<AttentionBlock>& blocks, std::int64_t queries,
                          std::int64_t keys, at::Device device);
};

/// As tree_attention, but for the logsumexp: in at least float32. The segments are merged by their
/// logsumexps l and l': o = e^(l − L) o_own + e^(l' − L) o_prefix with L = log(e^l + e^l').
AttentionResult segment_attention(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const SegmentPlan& plan, double scale,
                                  const AttentionLimits& limits = {});

/// As tree_attention_backward. Each segment's share is exact by itself: from the merged output and
/// logsumexp its operator makes the probabilities that its keys have among all keys.
AttentionGradients segment_attention_backward(const at::Tensor& grad_output,
                                              const at::Tensor& query, const at::Tensor& key,
                                              const at::Tensor& value,
                                              const AttentionResult& forward,
                                              const SegmentPlan& plan, double scale,
                                              const AttentionLimits& limits = {});

}  // namespace prefopt::detail
