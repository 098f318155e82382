// SPDX-License-Identifier: Apache-2.0
#pragma once

// A decoder layer over one packed stream, with its own backward pass: it keeps little memory,
// shares common beginnings, and skips rows that nothing needs.

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "decoder/network.h"
#include "decoder/tree_attention.h"
#include "prefopt/data/batch.h"
#include "prefopt/decoder/decoder.h"

namespace prefopt::detail {

/// The common part of the layers of one forward pass.
struct StreamPlan : torch::CustomClassHolder {
  LayerSpec spec;
  std::int64_t head_dim = 0;
  double lora_scale = 0;
  Checkpointing checkpointing = Checkpointing::kNone;
  Rotary key_rotary, query_rotary;  ///< [N, head_dim / 2], [M, head_dim / 2]
  std::vector<AttentionBlock> blocks;
  at::Tensor query_rows;  ///< [M] int64: the rows that continue; undefined: all N

  /// `scored_only`: the layer's result is needed where completion tokens are predicted, so the
  /// other rows give keys and values only.
  static c10::intrusive_ptr<StreamPlan> make(const Network& network, const PackedTokens& tokens,
                                             Checkpointing checkpointing, bool scored_only);
};

/// x [N, hidden] float32 or float64 on the CPU; result [N or M, hidden]. Differentiable in x and in
/// the tensors of `layer`, first-order. Narrow weights are widened for the time of a product.
at::Tensor packed_layer(const at::Tensor& x, const Layer& layer,
                        const c10::intrusive_ptr<StreamPlan>& plan);

/// Throws ConfigError, led by `where`, for a spec that packed_layer does not compute.
void check_packed_spec(const ModelSpec& spec, std::string_view where);

/// Bytes that a layer keeps for the backward pass, for each row.
std::int64_t kept_bytes_per_row(const Network& network, Checkpointing checkpointing,
                                at::ScalarType dtype);

}  // namespace prefopt::detail
