// SPDX-License-Identifier: Apache-2.0
#pragma once

// Fields of config.json that the options of a decoder keep as they are, in
// `DecoderOptions::family_fields`.

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "decoder/layer_spec.h"
#include "decoder/strict_config.h"
#include "prefopt/decoder/decoder.h"

namespace prefopt::detail {

inline constexpr std::string_view kFullAttention = "full_attention";
inline constexpr std::string_view kSlidingAttention = "sliding_attention";

/// The fields, read like a config. Errors are CheckpointErrors led by `where`.
class FamilyFields {
 public:
  FamilyFields(const DecoderOptions& options, std::string_view where);

  const StrictConfig& config() const { return config_; }
  /// Returns a number above 0.
  double positive(std::string_view name, double absent) const;
  /// Returns a number above 0, or 0 without one.
  double softcap(std::string_view name) const;

 private:
  Json json_;
  StrictConfig config_;
};

/// Returns the fields as an object.
Json family_fields_of(const DecoderOptions& options);
void set_family_field(DecoderOptions& options, std::string_view name, const Json& value);
/// Keeps those of the fields that the config has.
void keep_fields(const StrictConfig& config, const std::vector<std::string_view>& names,
                 DecoderOptions& options);

// --- windows -----------------------------------------------------------------------------------

/// Which layers slide where layer_types does not say so, by their index.
using SlidingRule = std::function<bool(std::int64_t layer)>;

/// Reads sliding_window and layer_types. `absent`: the window where the field is left out; 0: none.
void read_windows(const StrictConfig& config, const SlidingRule& slides, std::int64_t absent,
                  DecoderOptions& options);
/// Takes these layers for sliding ones; without any, there is no window.
void set_sliding_layers(const std::vector<bool>& slides, DecoderOptions& options);
/// Returns whether each layer slides.
std::vector<bool> sliding_layers(const DecoderOptions& options, const FamilyFields& fields);

// --- rotary positions --------------------------------------------------------------------------

/// Returns what the config says outside of its rotary group.
RopeDefaults rope_defaults(const StrictConfig& config, double theta, const DecoderOptions& options);
/// Reads `rope_parameters`, as transformers 5 writes them, or `rope_theta` and `rope_scaling`, as
/// versions before it.
RopeSpec read_one_rope(const StrictConfig& config, const RopeDefaults& defaults);
void set_rope(DecoderOptions& options, const RopeSpec& rope);
/// Returns the rotary positions that all layers share.
RopeSpec rope_of(const DecoderOptions& options, const FamilyFields& fields);

/// Those of layers that see all, and of those that slide.
struct RopePair {
  RopeSpec full, sliding;
};
/// Reads rotary groups by layer types, or the older fields: `rope_theta` and `rope_scaling` are
/// then of the layers that see all, and the others have `sliding_theta`.
RopePair read_rope_pair(const StrictConfig& config, const RopeDefaults& defaults,
                        double sliding_theta);
void set_rope_pair(DecoderOptions& options, const RopePair& ropes);
bool has_rope_pair(const FamilyFields& fields);
RopePair rope_pair_of(const DecoderOptions& options, const FamilyFields& fields);

}  // namespace prefopt::detail
