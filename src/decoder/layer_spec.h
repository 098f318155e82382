// SPDX-License-Identifier: Apache-2.0
#pragma once

// The arithmetic of a decoder. A family makes it of the options, all executors read it, and none of
// them asks which family a model is of.

#include <cstdint>
#include <string_view>
#include <vector>

#include "decoder/rope.h"
#include "kernels/cpu/elementwise.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/logps/token_logps.h"

namespace prefopt::detail {

using kernels::cpu::Gate;

/// An RMSNorm: w x / sqrt(mean(x²) + eps), where w is the weight or 1 + weight.
struct NormSpec {
  double eps = 1e-5;
  bool adds_one = false;

  bool operator==(const NormSpec&) const = default;
};

/// Where a layer has norms: of what goes into attention and feed-forward, or of what they give.
struct NormPlaces {
  bool before = true, after = false;

  bool operator==(const NormPlaces&) const = default;
};

/// Norms of queries and keys, before rotation: of each head, or of all heads as one vector.
enum class QueryKeyNorm { kNone, kHead, kAll };

/// Routed experts (2101.03961) in place of one feed-forward part.
struct ExpertSpec {
  std::int64_t count = 0;   ///< 0: none
  std::int64_t chosen = 0;  ///< for each token, by the highest probabilities of the router
  std::int64_t width = 0;
  bool normalized = true;  ///< weights of the chosen ones add up to 1

  bool operator==(const ExpertSpec&) const = default;
};

/// One layer. Defaults are Llama's, but for the numbers that depend on its sizes.
struct LayerSpec {
  static constexpr std::int64_t kNoRope = -1;

  NormSpec norm = {};
  NormPlaces norms = {};
  Gate gate = Gate::kSilu;      ///< function of the gate
  bool attention_bias = false;  ///< of the query, key and value projections
  bool attention_output_bias = false;
  bool mlp_bias = false;
  bool fused = false;  ///< queries, keys and values are one matrix, gate and up another one
  QueryKeyNorm query_key_norm = QueryKeyNorm::kNone;
  double query_scale = 1;        ///< factor of the attention scores
  double attention_softcap = 0;  ///< of the attention scores; 0: none
  std::int64_t window = 0;       ///< tokens that a position sees back, itself included; 0: all
  std::int64_t rope = 0;         ///< index into ModelSpec::ropes, or kNoRope
  double residual_scale = 1;     ///< of what attention and feed-forward add
  ExpertSpec experts = {};

  bool operator==(const LayerSpec&) const = default;
};

/// A whole model.
struct ModelSpec {
  std::vector<LayerSpec> layers;
  std::vector<RopeSpec> ropes = {};
  NormSpec norm = {};  ///< in front of the head
  double embedding_scale = 1;
  LogitTransform logits = {};
  bool tied_head = false;  ///< the output head is the embedding matrix
  double router_loss = 0;  ///< coefficient of the routers' loss in training; 0: none

  /// Returns the longest sequence that is computed, or 0 for any.
  std::int64_t longest() const;
  /// Returns the length beyond which a sequence has other rotary frequencies, or 0 for none.
  std::int64_t rope_boundary() const;
};

/// Returns the spec of options that mean what their names say: layers that are alike but for their
/// windows, with a query_scale of 1 / sqrt(head_dim). Errors are led by `where`.
ModelSpec plain_spec(const DecoderOptions& options, std::string_view where);

}  // namespace prefopt::detail
