// SPDX-License-Identifier: Apache-2.0
#pragma once

// Weights and arithmetic of the decoder, without files.

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "decoder/layer_spec.h"
#include "math/wide_gradient.h"
#include "prefopt/data/batch.h"
#include "prefopt/decoder/decoder.h"

namespace prefopt::detail {

/// y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ, where b and the adapter (2106.09685) may be undefined.
struct Linear {
  at::Tensor weight, bias;
  at::Tensor lora_a, lora_b;  ///< [rank, in], [out, rank]
};

/// Which of a layer's linear maps one is.
struct LinearPlace {
  std::string_view name;  ///< "self_attn.q_proj"
  std::int64_t in, out;
  bool has_bias;
};

struct Layer {
  at::Tensor input_norm;
  Linear query, key, value, output;
  at::Tensor query_norm, key_norm;  ///< [head_dim], undefined: none
  at::Tensor post_attention_norm;
  Linear gate, up, down;
};

/// Calls `visit(tensor)` for each tensor of a layer, defined or not, in a fixed order.
template <class LayerType, class Visit>
void for_each_tensor(LayerType& layer, Visit&& visit) {
  visit(layer.input_norm);
  visit(layer.query_norm);
  visit(layer.key_norm);
  visit(layer.post_attention_norm);
  for (auto* linear : {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate,
                       &layer.up, &layer.down}) {
    visit(linear->weight);
    visit(linear->bias);
    visit(linear->lora_a);
    visit(linear->lora_b);
  }
}

/// Cosines and sines of the rotary angles of some positions, [positions, head_dim / 2] each.
struct Rotary {
  at::Tensor cos, sin;
};

struct Network {
  DecoderOptions options;  ///< of these, executors read sizes and rotary frequencies
  ModelSpec spec;
  at::Tensor embedding, norm, lm_head;
  std::vector<Layer> layers;
  double lora_scale = 0;

  std::int64_t groups() const { return options.num_attention_heads / options.num_key_value_heads; }
  const at::Tensor& head() const { return spec.tied_head ? embedding : lm_head; }

  /// Calls `visit(name, tensor, shape)` for each weight of the model, in transformers' order.
  template <class Visit>
  void for_each_weight(Visit&& visit);
  /// Calls `visit(place, linear)` for each linear map of a layer.
  template <class Visit>
  void for_each_linear(std::size_t index, Visit&& visit);

  /// Angles are float32 whatever the dtype of the weights, as in transformers: a float64 run is
  /// then the exact value of what a float32 run computes.
  Rotary rotary_at(const at::Tensor& positions, at::ScalarType dtype) const;

  /// Hidden states [S * T, hidden] in front of the head, by autograd. `positions` is [S or 1, T];
  /// `attend(layer index, q, k, v)` takes [S, heads, T, head_dim] and gives the same for queries.
  template <class Attend>
  at::Tensor hidden_states(const at::Tensor& ids, const at::Tensor& positions,
                           Attend&& attend) const;
};

/// Throws ConfigError, led by `where`, for a spec that hidden_states does not compute.
void check_padded_spec(const ModelSpec& spec, std::string_view where);

/// On a CPU in large pages, which the layers read through fewer misses.
at::Tensor copy_of(const at::Tensor& weight);

/// The parts of `hidden_states`.
at::Tensor apply_rope(const at::Tensor& x, const Rotary& rotary);  // x [S, heads, T, head_dim]
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
at::Tensor linear(const at::Tensor& rows, const Linear& map, double lora_scale);
/// x + silu(gate(n)) · up(n) through down, with n the normed x.
at::Tensor add_feed_forward(const at::Tensor& x, const Layer& layer, double eps, double lora_scale);
at::Tensor embed(const at::Tensor& embedding, const at::Tensor& ids);
/// [S, kv_heads, T, D] to [S, kv_heads * groups, T, D]: each head `groups` times in a row.
at::Tensor repeat_heads(const at::Tensor& x, std::int64_t groups);

template <class Visit>
void Network::for_each_linear(std::size_t index, Visit&& visit) {
  const std::int64_t hidden = options.hidden_size;
  const std::int64_t queries = options.num_attention_heads * options.head_dim;
  const std::int64_t keys = options.num_key_value_heads * options.head_dim;
  const std::int64_t wide = options.intermediate_size;
  const bool bias = spec.layer.attention_bias;
  const bool mlp_bias = spec.layer.mlp_bias;
  Layer& layer = layers[index];
  visit(LinearPlace{"self_attn.q_proj", hidden, queries, bias}, layer.query);
  visit(LinearPlace{"self_attn.k_proj", hidden, keys, bias}, layer.key);
  visit(LinearPlace{"self_attn.v_proj", hidden, keys, bias}, layer.value);
  visit(LinearPlace{"self_attn.o_proj", queries, hidden, spec.layer.attention_output_bias},
        layer.output);
  visit(LinearPlace{"mlp.gate_proj", hidden, wide, mlp_bias}, layer.gate);
  visit(LinearPlace{"mlp.up_proj", hidden, wide, mlp_bias}, layer.up);
  visit(LinearPlace{"mlp.down_proj", wide, hidden, mlp_bias}, layer.down);
}

template <class Visit>
void Network::for_each_weight(Visit&& visit) {
  using Shape = std::vector<std::int64_t>;
  const Shape by_hidden{options.hidden_size};
  const Shape vocab_by_hidden{options.vocab_size, options.hidden_size};
  visit(std::string("model.embed_tokens.weight"), embedding, vocab_by_hidden);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto name = [&](std::string_view part) {
      return fmt::format("model.layers.{}.{}", i, part);
    };
    for_each_linear(i, [&](const LinearPlace& place, Linear& map) {
      visit(name(place.name) + ".weight", map.weight, Shape{place.out, place.in});
      if (place.has_bias) visit(name(place.name) + ".bias", map.bias, Shape{place.out});
    });
    if (spec.layer.query_key_norm) {
      visit(name("self_attn.q_norm.weight"), layers[i].query_norm, Shape{options.head_dim});
      visit(name("self_attn.k_norm.weight"), layers[i].key_norm, Shape{options.head_dim});
    }
    visit(name("input_layernorm.weight"), layers[i].input_norm, by_hidden);
    visit(name("post_attention_layernorm.weight"), layers[i].post_attention_norm, by_hidden);
  }
  visit(std::string("model.norm.weight"), norm, by_hidden);
  if (!spec.tied_head) visit(std::string("lm_head.weight"), lm_head, vocab_by_hidden);
}

template <class Attend>
at::Tensor Network::hidden_states(const at::Tensor& ids, const at::Tensor& positions,
                                  Attend&& attend) const {
  const std::int64_t count = ids.size(0);
  const std::int64_t length = ids.size(1);
  const double eps = spec.layer.norm_eps;
  Rotary rotary = rotary_at(positions, at_least_float32(embedding.scalar_type()));
  rotary = {rotary.cos.unsqueeze(1), rotary.sin.unsqueeze(1)};
  const auto heads = [&](const at::Tensor& rows, const Linear& map, const at::Tensor& head_norm) {
    const at::Tensor split =
        linear(rows, map, lora_scale).view({count, length, -1, options.head_dim});
    return (head_norm.defined() ? rms_norm(split, head_norm, eps) : split).transpose(1, 2);
  };
  // Rows of all tokens: two-dimensional products take the same path with and without gradient.
  at::Tensor x = embed(embedding, ids.reshape(-1));
  if (spec.embedding_scale != 1) x = x * spec.embedding_scale;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const at::Tensor normed = rms_norm(x, layer.input_norm, eps);
    const at::Tensor attended =
        attend(i, apply_rope(heads(normed, layer.query, layer.query_norm), rotary),
               apply_rope(heads(normed, layer.key, layer.key_norm), rotary),
               heads(normed, layer.value, {}));
    x = x +
        linear(attended.transpose(1, 2).reshape({count * length, -1}), layer.output, lora_scale);
    x = add_feed_forward(x, layer, eps, lora_scale);
  }
  return rms_norm(x, norm, eps);
}

}  // namespace prefopt::detail
