// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rotary positions (2104.09864) and the ways to stretch them, as transformers computes them.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "decoder/strict_config.h"

namespace prefopt::detail {

enum class RopeType { kDefault, kLinear, kLlama3, kYarn, kDynamic, kLongrope };

/// The rotary positions of a layer. Position p turns the pair i of D by the angle p f_i; without a
/// stretch f_i = theta^(−i / D).
struct RopeSpec {
  RopeType type = RopeType::kDefault;
  double theta = 10000;
  double partial = 1;           ///< share of a head that is turned
  double factor = 1;            ///< of the stretch
  std::int64_t context = 0;     ///< tokens before the stretch
  double low = 1, high = 4;     ///< llama3: turns within the context that bound the part between
  double fast = 32, slow = 1;   ///< yarn: the same, from above
  bool truncate = true;         ///< yarn: these bounds fall on whole pairs
  double attention_factor = 1;  ///< of cosines and sines
  std::vector<double> short_factors = {}, long_factors = {};  ///< longrope: divisors of f within
                                                              ///< the context and beyond it

  bool operator==(const RopeSpec&) const = default;

  /// Returns how many numbers of a head are turned.
  std::int64_t turned(std::int64_t head_dim) const;
  /// Returns whether the frequencies of a sequence depend on whether it is longer than `context`.
  bool depends_on_length() const { return type == RopeType::kLongrope; }
  /// Returns the longest sequence that is computed, or 0 for any. Dynamic frequencies are those of
  /// the longest sequence of a batch, and of those that a process saw before: beyond the context
  /// a row's result would depend on its neighbours.
  std::int64_t longest() const { return type == RopeType::kDynamic ? context : 0; }
};

/// Cosines and sines of the rotary angles of some positions, [positions, turned / 2] each.
struct Rotary {
  at::Tensor cos, sin;
};

/// Returns those of `positions`, in sequences beyond the context if `is_long`. Angles are float32
/// whatever the dtype of the weights, as in transformers: a float64 run is then the exact value of
/// what a float32 run computes.
Rotary rotary_of(const RopeSpec& spec, std::int64_t head_dim, const at::Tensor& positions,
                 bool is_long, at::ScalarType dtype);

/// Fields of a config outside of its rotary group, which count within it.
struct RopeDefaults {
  double theta = 10000;
  double partial = 1;
  std::int64_t longest = 2048;        ///< max_position_embeddings
  bool may_be_partial = false;        ///< whether the family turns a share of a head
  std::int64_t original_longest = 0;  ///< original_max_position_embeddings; 0: none
};

/// Reads the group `name` of a config, `rope_parameters` or `rope_scaling`. A name that its type
/// does not read is refused, unless its value changes nothing.
RopeSpec read_rope(const StrictConfig& config, std::string_view name, const Json& group,
                   const RopeDefaults& defaults);

/// Throws ConfigError, led by `where`, for numbers that no rotation can be made of.
void check_rope(const RopeSpec& spec, std::int64_t head_dim, std::string_view where);

/// Returns the group that `read_rope` reads back.
Json rope_to_json(const RopeSpec& spec);

}  // namespace prefopt::detail
