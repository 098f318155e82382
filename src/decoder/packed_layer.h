// SPDX-License-Identifier: Apache-2.0
#pragma once

// A decoder layer over one packed stream, with its own backward pass: it keeps little memory,
// shares common beginnings, and skips rows that nothing needs.

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "decoder/network.h"
#include "decoder/segment_attention.h"
#include "decoder/tree_attention.h"
#include "prefopt/data/batch.h"
#include "prefopt/decoder/decoder.h"

namespace prefopt::detail {

/// How a stream goes through the layers.
struct Packing {
  Checkpointing checkpointing = Checkpointing::kNone;
  /// Whether the last token of each sequence has a row, too. As a rule none needs it.
  bool has_last_tokens = false;
};

/// The common part of the layers of one forward pass.
struct StreamPlan : torch::CustomClassHolder {
  ModelSpec spec;
  std::int64_t head_dim = 0;
  double lora_scale = 0;
  Checkpointing checkpointing = Checkpointing::kNone;
  std::vector<Rotary> key_rotaries, query_rotaries;  ///< of [N] and [M] rows, as spec.ropes
  std::vector<AttentionBlock> blocks;                ///< for the CPU's kernels
  std::optional<SegmentPlan> segments;               ///< the same on other devices
  /// In place of both, where keys and values outlive the pass, which then has no gradient: the
  /// attention of the layer at `index`.
  std::function<at::Tensor(std::int64_t index, const at::Tensor& query, const at::Tensor& key,
                           const at::Tensor& value)>
      attend;
  RouterWatch watch_router;  ///< of all layers with experts; may be empty
  at::Tensor query_rows;     ///< [M] int64: the rows that continue; undefined: all N

  /// `scored_only`: the layer's result is needed where completion tokens are predicted, so the
  /// other rows give keys and values only.
  static c10::intrusive_ptr<StreamPlan> make(const Network& network, const PackedTokens& tokens,
                                             const Packing& packing, bool scored_only);
};

/// The unfused layer at `index` of the spec. x [N, hidden] in the network's stream_dtype; result [N
/// or M, hidden]. Differentiable in x and in the tensors of `layer`, first-order. Narrow weights
/// are widened for the time of a product.
at::Tensor packed_layer(const at::Tensor& x, const Layer& layer, std::int64_t index,
                        const c10::intrusive_ptr<StreamPlan>& plan);

/// Bytes that all layers keep for the backward pass, for each row.
std::int64_t kept_bytes_per_row(const Network& network, Checkpointing checkpointing,
                                at::ScalarType dtype);

/// Bytes that one layer's backward pass takes for each row, in addition to what all layers keep:
/// what it computes again, and gradients until they are used.
std::int64_t work_bytes_per_row(const Network& network, Checkpointing checkpointing,
                                at::ScalarType dtype);

}  // namespace prefopt::detail
