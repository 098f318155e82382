// SPDX-License-Identifier: Apache-2.0
#pragma once

// The arithmetic of a decoder. A family makes it of the options, all executors read it, and none of
// them asks which family a model is of.

#include <cstdint>
#include <string_view>

#include "prefopt/decoder/decoder.h"
#include "prefopt/logps/token_logps.h"

namespace prefopt::detail {

enum class NormKind { kRms, kLayer };
enum class Activation { kSilu, kGelu, kGeluTanh };
/// Which dimensions of a head are rotated together: i with i + head_dim / 2, or 2i with 2i + 1.
enum class RopeKind { kHalves, kNeighbours, kNone };

/// One layer. Defaults are Llama's, but for the two numbers that depend on its sizes.
struct LayerSpec {
  NormKind norm = NormKind::kRms;
  double norm_eps = 1e-5;
  bool norm_adds_one = false;  ///< the norm multiplies by 1 + weight
  bool post_norms = false;     ///< norms of the results of attention and feed-forward, too
  Activation activation = Activation::kSilu;  ///< of the gate
  bool attention_bias = false;                ///< of the query, key and value projections
  bool attention_output_bias = false;
  bool mlp_bias = false;
  bool query_key_norm = false;   ///< of each query and key head, before rotation
  double query_scale = 1;        ///< factor of the attention scores
  double attention_softcap = 0;  ///< of the attention scores; 0: none
  std::int64_t window = 0;       ///< tokens that a position sees back, itself included; 0: all
  RopeKind rope = RopeKind::kHalves;
  double partial_rotary = 1;  ///< share of a head that is rotated

  bool operator==(const LayerSpec&) const = default;
};

/// A whole model; its layers are alike.
struct ModelSpec {
  LayerSpec layer = {};
  double embedding_scale = 1;
  LogitTransform logits = {};
  bool tied_head = false;  ///< the output head is the embedding matrix
};

/// Returns the spec of options that mean what their names say: query_scale is 1 / sqrt(head_dim).
ModelSpec plain_spec(const DecoderOptions& options);

/// The parts of a spec that not every executor computes.
struct SpecSupport {
  bool layer_norm = false;
  bool norm_adds_one = false;
  bool post_norms = false;
  bool gelu = false;
  bool attention_softcap = false;
  bool other_rope = false;
  bool partial_rotary = false;
};

/// Throws ConfigError, led by `where`, for a value that `executor` does not compute.
void refuse_unsupported(const ModelSpec& spec, const SpecSupport& supported,
                        std::string_view executor, std::string_view where);

}  // namespace prefopt::detail
