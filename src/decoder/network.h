// SPDX-License-Identifier: Apache-2.0
#pragma once

// Weights and arithmetic of the decoder, without files.

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "decoder/layer_spec.h"
#include "math/sliced_weight.h"
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

/// A feed-forward part that a router may choose.
struct Expert {
  Linear gate, up, down;
};

struct Layer {
  at::Tensor attention_in_norm, attention_out_norm;  ///< undefined: none, as with all norms
  at::Tensor feed_in_norm, feed_out_norm;
  at::Tensor query_norm, key_norm;  ///< [head_dim], or as wide as all heads
  Linear qkv, gate_up;              ///< in place of query, key and value, of gate and up, or none
  Linear query, key, value, output;
  Linear gate, up, down;
  at::Tensor router;  ///< [experts, hidden]
  std::vector<Expert> experts;
};

/// Calls `visit(tensor)` for each tensor of an unfused layer without experts, defined or not, in a
/// fixed order.
template <class LayerType, class Visit>
void for_each_tensor(LayerType& layer, Visit&& visit) {
  visit(layer.attention_in_norm);
  visit(layer.attention_out_norm);
  visit(layer.query_norm);
  visit(layer.key_norm);
  visit(layer.feed_in_norm);
  visit(layer.feed_out_norm);
  for (auto* linear : {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate,
                       &layer.up, &layer.down}) {
    visit(linear->weight);
    visit(linear->bias);
    visit(linear->lora_a);
    visit(linear->lora_b);
  }
}

struct Network {
  DecoderOptions options;  ///< of these, executors read sizes
  ModelSpec spec;
  at::Tensor embedding, norm, lm_head;
  std::vector<Layer> layers;
  double lora_scale = 0;

  std::int64_t groups() const { return options.num_attention_heads / options.num_key_value_heads; }
  const at::Tensor& head() const { return spec.tied_head ? embedding : lm_head; }
  /// Returns the dtype of hidden states on a packed stream: at least float32 on the CPU.
  at::ScalarType stream_dtype() const {
    const auto stored = embedding.scalar_type();
    return embedding.is_cpu() ? at_least_float32(stored) : stored;
  }

  /// Calls `visit(name, tensor, shape)` for each weight of the model, in transformers' order.
  template <class Visit>
  void for_each_weight(Visit&& visit);
  /// Calls `visit(place, linear)` for each linear map of a layer, apart from experts.
  template <class Visit>
  void for_each_linear(std::size_t index, Visit&& visit);
  /// Calls `visit(name, weight, width)` for each norm of a layer.
  template <class Visit>
  void for_each_norm(std::size_t index, Visit&& visit);
  /// Calls `visit(name, weight, out, in)` for each matrix of a layer's router and experts.
  template <class Visit>
  void for_each_expert_weight(std::size_t index, Visit&& visit);

  /// Returns a layer with queries, keys, values, gate and up apart: views of fused matrices
  /// where the model has those.
  Layer unfused(std::size_t index) const;

  /// Returns cosines and sines of `positions` for each of the spec's rotary positions. `lengths`
  /// has the length of the sequence that each position is in, in the shape of `positions`.
  std::vector<Rotary> rotaries_at(const at::Tensor& positions, const at::Tensor& lengths,
                                  at::ScalarType dtype) const;

  /// Hidden states [S * T, hidden] in front of the head, by autograd, of sequences whose `lengths`
  /// are [S] of the T columns.
  at::Tensor hidden_states(const at::Tensor& ids, const at::Tensor& lengths) const;
};

/// Holds the weights of a layer that are sliced: one unit, or two where another model shares some.
std::vector<HeldWeights> hold(const Layer& layer);

/// Returns the network with copies of the weights that are sliced, differentiable: whole ones, for
/// who reads all of them again and again.
Network with_whole_weights(Network network);

/// On a CPU in large pages, which the layers read through fewer misses. A weight in blocks is not
/// copied: nothing writes to it.
at::Tensor copy_of(const at::Tensor& weight);

/// Returns rows of the embedding in `dtype`, [ids, hidden], differentiable.
at::Tensor embedded(const at::Tensor& embedding, const at::Tensor& ids, at::ScalarType dtype);

/// The parts of `hidden_states`.
at::Tensor apply_rope(const at::Tensor& x, const Rotary& rotary);  // x [S, heads, T, head_dim]
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, const NormSpec& norm);
at::Tensor linear(const at::Tensor& rows, const Linear& map, double lora_scale);
/// Attention of queries [S, heads, T, D] to keys and values [S, kv_heads, T, D].
at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const LayerSpec& spec);
/// Takes a router's probabilities [N, experts] and the experts of each row [N, k].
using RouterWatch = std::function<void(const at::Tensor& shares, const at::Tensor& chosen)>;
/// Returns the result of the experts for rows [N, hidden], by autograd.
at::Tensor mix_experts(const at::Tensor& rows, const Layer& layer, const LayerSpec& spec,
                       const RouterWatch& watch = {});

template <class Visit>
void Network::for_each_linear(std::size_t index, Visit&& visit) {
  const std::int64_t hidden = options.hidden_size;
  const std::int64_t queries = options.num_attention_heads * options.head_dim;
  const std::int64_t keys = options.num_key_value_heads * options.head_dim;
  const std::int64_t wide = options.intermediate_size;
  const LayerSpec& of = spec.layers[index];
  Layer& layer = layers[index];
  if (of.fused) {
    visit(LinearPlace{"self_attn.qkv_proj", hidden, queries + 2 * keys, of.attention_bias},
          layer.qkv);
  } else {
    visit(LinearPlace{"self_attn.q_proj", hidden, queries, of.attention_bias}, layer.query);
    visit(LinearPlace{"self_attn.k_proj", hidden, keys, of.attention_bias}, layer.key);
    visit(LinearPlace{"self_attn.v_proj", hidden, keys, of.attention_bias}, layer.value);
  }
  visit(LinearPlace{"self_attn.o_proj", queries, hidden, of.attention_output_bias}, layer.output);
  if (of.experts.count > 0) return;
  if (of.fused) {
    visit(LinearPlace{"mlp.gate_up_proj", hidden, 2 * wide, of.mlp_bias}, layer.gate_up);
  } else {
    visit(LinearPlace{"mlp.gate_proj", hidden, wide, of.mlp_bias}, layer.gate);
    visit(LinearPlace{"mlp.up_proj", hidden, wide, of.mlp_bias}, layer.up);
  }
  visit(LinearPlace{"mlp.down_proj", wide, hidden, of.mlp_bias}, layer.down);
}

template <class Visit>
void Network::for_each_norm(std::size_t index, Visit&& visit) {
  const LayerSpec& of = spec.layers[index];
  Layer& layer = layers[index];
  if (of.query_key_norm != QueryKeyNorm::kNone) {
    const bool all = of.query_key_norm == QueryKeyNorm::kAll;
    const auto width = [&](std::int64_t heads) { return (all ? heads : 1) * options.head_dim; };
    visit("self_attn.q_norm.weight", layer.query_norm, width(options.num_attention_heads));
    visit("self_attn.k_norm.weight", layer.key_norm, width(options.num_key_value_heads));
  }
  const std::int64_t hidden = options.hidden_size;
  if (of.norms.before) visit("input_layernorm.weight", layer.attention_in_norm, hidden);
  if (of.norms.after) visit("post_attention_layernorm.weight", layer.attention_out_norm, hidden);
  if (of.norms.before) {
    // Llama's name is that of another norm where there are norms on both sides.
    visit(of.norms.after ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight",
          layer.feed_in_norm, hidden);
  }
  if (of.norms.after) visit("post_feedforward_layernorm.weight", layer.feed_out_norm, hidden);
}

template <class Visit>
void Network::for_each_expert_weight(std::size_t index, Visit&& visit) {
  const ExpertSpec& of = spec.layers[index].experts;
  if (of.count == 0) return;
  Layer& layer = layers[index];
  const std::int64_t hidden = options.hidden_size;
  visit(std::string("mlp.gate.weight"), layer.router, of.count, hidden);
  layer.experts.resize(static_cast<std::size_t>(of.count));
  for (std::size_t e = 0; e < layer.experts.size(); ++e) {
    const auto name = [&](std::string_view part) {
      return fmt::format("mlp.experts.{}.{}.weight", e, part);
    };
    visit(name("gate_proj"), layer.experts[e].gate.weight, of.width, hidden);
    visit(name("up_proj"), layer.experts[e].up.weight, of.width, hidden);
    visit(name("down_proj"), layer.experts[e].down.weight, hidden, of.width);
  }
}

template <class Visit>
void Network::for_each_weight(Visit&& visit) {
  using Shape = std::vector<std::int64_t>;
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
    for_each_expert_weight(
        i, [&](const std::string& part, at::Tensor& weight, std::int64_t out, std::int64_t in) {
          visit(name(part), weight, Shape{out, in});
        });
    for_each_norm(i, [&](std::string_view part, at::Tensor& weight, std::int64_t width) {
      visit(name(part), weight, Shape{width});
    });
  }
  visit(std::string("model.norm.weight"), norm, Shape{options.hidden_size});
  if (!spec.tied_head) visit(std::string("lm_head.weight"), lm_head, vocab_by_hidden);
}

}  // namespace prefopt::detail
