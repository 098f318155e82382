// SPDX-License-Identifier: Apache-2.0
#include "decoder/layer_spec.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "decoder/family_fields.h"

namespace prefopt::detail {
namespace {

// The least of the limits that are not 0.
template <class Limit>
std::int64_t least_limit(const std::vector<RopeSpec>& ropes, Limit&& limit_of) {
  std::int64_t least = 0;
  for (const RopeSpec& rope : ropes) {
    const std::int64_t limit = limit_of(rope);
    if (limit > 0) least = least == 0 ? limit : std::min(least, limit);
  }
  return least;
}

}  // namespace

std::int64_t ModelSpec::longest() const {
  return least_limit(ropes, [](const RopeSpec& rope) { return rope.longest(); });
}

std::int64_t ModelSpec::rope_boundary() const {
  return least_limit(
      ropes, [](const RopeSpec& rope) { return rope.depends_on_length() ? rope.context : 0; });
}

ModelSpec plain_spec(const DecoderOptions& options, std::string_view where) {
  const FamilyFields fields(options, where);
  const NormSpec norm{.eps = options.rms_norm_eps};
  LayerSpec layer{.norm = norm,
                  .attention_bias = options.attention_bias,
                  .attention_output_bias = options.attention_output_bias,
                  .query_key_norm = options.qk_norm ? QueryKeyNorm::kHead : QueryKeyNorm::kNone,
                  .query_scale = 1 / std::sqrt(static_cast<double>(options.head_dim))};
  ModelSpec spec{.layers = {}, .norm = norm, .tied_head = options.tie_word_embeddings};
  const bool has_pair = has_rope_pair(fields);
  if (has_pair) {
    RopePair ropes = rope_pair_of(options, fields);
    spec.ropes = {std::move(ropes.full), std::move(ropes.sliding)};
  } else {
    spec.ropes = {rope_of(options, fields)};
  }
  for (const bool slides : sliding_layers(options, fields)) {
    layer.window = slides ? options.sliding_window : 0;
    layer.rope = has_pair && slides ? 1 : 0;
    spec.layers.push_back(layer);
  }
  return spec;
}

}  // namespace prefopt::detail
