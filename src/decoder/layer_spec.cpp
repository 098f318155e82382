// SPDX-License-Identifier: Apache-2.0
#include "decoder/layer_spec.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <type_traits>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

std::string_view spec_name(NormKind norm) {
  return std::array<std::string_view, 2>{"rms", "layer"}.at(static_cast<std::size_t>(norm));
}

std::string_view spec_name(Activation activation) {
  return std::array<std::string_view, 3>{"silu", "gelu", "gelu_tanh"}.at(
      static_cast<std::size_t>(activation));
}

std::string_view spec_name(RopeKind rope) {
  return std::array<std::string_view, 3>{"halves", "neighbours", "none"}.at(
      static_cast<std::size_t>(rope));
}

template <class T>
auto shown_value(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    return spec_name(value);
  } else {
    return value;
  }
}

}  // namespace

ModelSpec plain_spec(const DecoderOptions& options) {
  return {.layer = {.norm_eps = options.rms_norm_eps,
                    .attention_bias = options.attention_bias,
                    .attention_output_bias = options.attention_output_bias,
                    .query_key_norm = options.qk_norm,
                    .query_scale = 1 / std::sqrt(static_cast<double>(options.head_dim)),
                    .window = options.sliding_window},
          .tied_head = options.tie_word_embeddings};
}

void refuse_unsupported(const ModelSpec& spec, const SpecSupport& supported,
                        std::string_view executor, std::string_view where) {
  const auto expect = [&](bool is_supported, std::string_view field, const auto& usual,
                          const auto& given) {
    if (is_supported || given == usual) return;
    throw ConfigError(fmt::format("{}: expected {} {}, got {}; {} computes no other", where, field,
                                  shown_value(usual), shown_value(given), executor));
  };
  const LayerSpec usual;
  const LayerSpec& layer = spec.layer;
  expect(supported.layer_norm, "norm", usual.norm, layer.norm);
  expect(supported.norm_adds_one, "norm_adds_one", usual.norm_adds_one, layer.norm_adds_one);
  expect(supported.post_norms, "post_norms", usual.post_norms, layer.post_norms);
  expect(supported.gelu, "activation", usual.activation, layer.activation);
  expect(supported.attention_softcap, "attention_softcap", usual.attention_softcap,
         layer.attention_softcap);
  expect(supported.other_rope, "rope", usual.rope, layer.rope);
  expect(supported.partial_rotary, "partial_rotary", usual.partial_rotary, layer.partial_rotary);
}

}  // namespace prefopt::detail
