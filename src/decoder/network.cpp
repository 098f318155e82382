// SPDX-License-Identifier: Apache-2.0
#include "decoder/network.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/index.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

#include "core/memory_pool.h"
#include "kernels/block_tensor.h"

namespace prefopt::detail {
at::Tensor copy_of(const at::Tensor& weight) {
  if (kernels::blocks_of(weight)) return weight.detach();
  if (is_sliced(weight)) return whole(weight.detach());
  if (!weight.is_cpu()) return weight.detach().clone();
  return empty_from_pool(weight.sizes(), weight.scalar_type()).copy_(weight.detach());
}

namespace {

// Rows [begin, begin + count) of a fused map.
Linear part_of(const Linear& fused, std::int64_t begin, std::int64_t count) {
  Linear part;
  part.weight = kernels::narrow_rows(fused.weight, begin, count);
  if (fused.bias.defined()) part.bias = fused.bias.narrow(0, begin, count);
  if (fused.lora_a.defined()) {
    part.lora_a = fused.lora_a;
    part.lora_b = fused.lora_b.narrow(0, begin, count);
  }
  return part;
}

}  // namespace

Layer Network::unfused(std::size_t index) const {
  Layer layer = layers[index];
  if (!spec.layers[index].fused) return layer;
  const std::int64_t queries = options.num_attention_heads * options.head_dim;
  const std::int64_t keys = options.num_key_value_heads * options.head_dim;
  const std::int64_t wide = options.intermediate_size;
  layer.query = part_of(layer.qkv, 0, queries);
  layer.key = part_of(layer.qkv, queries, keys);
  layer.value = part_of(layer.qkv, queries + keys, keys);
  layer.gate = part_of(layer.gate_up, 0, wide);
  layer.up = part_of(layer.gate_up, wide, wide);
  return layer;
}

std::vector<Rotary> Network::rotaries_at(const at::Tensor& positions, const at::Tensor& lengths,
                                         at::ScalarType dtype) const {
  std::vector<Rotary> rotaries;
  for (const RopeSpec& rope : spec.ropes) {
    Rotary rotary = rotary_of(rope, options.head_dim, positions, /*is_long=*/false, dtype);
    if (rope.depends_on_length()) {
      const Rotary beyond = rotary_of(rope, options.head_dim, positions, /*is_long=*/true, dtype);
      const at::Tensor is_long = (lengths > rope.context).unsqueeze(-1);
      rotary = {at::where(is_long, beyond.cos, rotary.cos),
                at::where(is_long, beyond.sin, rotary.sin)};
    }
    rotaries.push_back(std::move(rotary));
  }
  return rotaries;
}

// Dimension i is rotated with dimension i + turned / 2; the rest of a head stays as it is.
at::Tensor apply_rope(const at::Tensor& x, const Rotary& rotary) {
  const std::int64_t turned = 2 * rotary.cos.size(-1);
  const at::Tensor wide = x.to(rotary.cos.scalar_type());
  const auto halves = wide.narrow(-1, 0, turned).chunk(2, -1);
  std::vector<at::Tensor> parts = {halves[0] * rotary.cos - halves[1] * rotary.sin,
                                   halves[1] * rotary.cos + halves[0] * rotary.sin};
  if (turned < x.size(-1)) parts.push_back(wide.slice(-1, turned));
  return at::cat(parts, -1).to(x.scalar_type());
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, const NormSpec& norm) {
  const at::Tensor wide = x.to(at_least_float32(x.scalar_type()));
  const at::Tensor scale = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + norm.eps);
  // Of 1 + weight, the sum is not rounded; a norm may be wider than the matrices around it.
  if (norm.adds_one)
    return (wide * scale * (1 + weight.to(wide.scalar_type()))).to(x.scalar_type());
  return (weight * (wide * scale).to(x.scalar_type())).to(x.scalar_type());
}

at::Tensor embedded(const at::Tensor& embedding, const at::Tensor& ids, at::ScalarType dtype) {
  if (const kernels::StoredBlocks* blocks = kernels::blocks_of(embedding)) {
    return kernels::rows_at(*blocks, ids).to(dtype);
  }
  return widened_rows(embedding, ids, dtype);
}

namespace {

at::Tensor product_of(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& bias) {
  if (!bias.defined()) return kernels::product(rows, weight);
  if (kernels::blocks_of(weight)) return kernels::product(rows, weight) + bias;
  return at::addmm(bias.to(rows.scalar_type()), rows, weight.t());
}

}  // namespace

at::Tensor linear(const at::Tensor& rows, const Linear& map, double lora_scale) {
  at::Tensor result = product_of(rows, map.weight, map.bias);
  if (map.lora_a.defined()) {
    // Adapters are at least float32; the sum is rounded once.
    const at::Tensor wide = rows.to(map.lora_a.scalar_type());
    const at::Tensor added = lora_scale * at::mm(at::mm(wide, map.lora_a.t()), map.lora_b.t());
    result = (result + added).to(rows.scalar_type());
  }
  return result;
}

namespace {

at::Tensor gated(Gate gate, const at::Tensor& x) {
  return gate == Gate::kSilu ? at::silu(x) : at::gelu(x, "tanh");
}

// [S, kv_heads, T, D] to [S, kv_heads * groups, T, D]: each head `groups` times in a row.
at::Tensor repeat_heads(const at::Tensor& x, std::int64_t groups) {
  if (groups == 1) return x;
  return x.unsqueeze(2)
      .expand({-1, -1, groups, -1, -1})
      .reshape({x.size(0), x.size(1) * groups, x.size(2), x.size(3)});
}

// Whether column j is seen at row i, [length, length].
at::Tensor visible(std::int64_t length, std::int64_t window, at::Device device) {
  const at::Tensor causal =
      at::ones({length, length}, at::TensorOptions(at::kBool).device(device)).tril();
  return window == 0 ? causal : causal.triu(1 - window);
}

at::Tensor feed_forward(const at::Tensor& rows, const Layer& layer, const LayerSpec& spec,
                        double lora_scale) {
  if (spec.experts.count > 0) return mix_experts(rows, layer, spec);
  return linear(
      gated(spec.gate, linear(rows, layer.gate, lora_scale)) * linear(rows, layer.up, lora_scale),
      layer.down, lora_scale);
}

}  // namespace

at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const LayerSpec& spec) {
  const std::int64_t groups = query.size(1) / key.size(1), length = query.size(2);
  const at::Tensor keys = repeat_heads(key, groups), values = repeat_heads(value, groups);
  const std::int64_t window = spec.window < length ? spec.window : 0;
  // Padding is on the right, where the causal mask hides it from every real token.
  if (spec.attention_softcap == 0 && window == 0) {
    return at::scaled_dot_product_attention(query, keys, values, /*attn_mask=*/{},
                                            /*dropout_p=*/0.0, /*is_causal=*/true,
                                            spec.query_scale);
  }
  const at::Tensor mask = visible(length, window, query.device());
  if (spec.attention_softcap == 0) {
    return at::scaled_dot_product_attention(query, keys, values, mask, /*dropout_p=*/0.0,
                                            /*is_causal=*/false, spec.query_scale);
  }
  const auto dtype = at_least_float32(query.scalar_type());
  const at::Tensor scores = at::matmul(query, keys.transpose(-1, -2)).to(dtype) * spec.query_scale;
  const double cap = spec.attention_softcap;
  const at::Tensor capped =
      (cap * (scores / cap).tanh())
          .masked_fill(mask.logical_not(), -std::numeric_limits<double>::infinity());
  return at::matmul(capped.softmax(-1).to(query.scalar_type()), values);
}

at::Tensor mix_experts(const at::Tensor& rows, const Layer& layer, const LayerSpec& spec,
                       const RouterWatch& watch) {
  const auto dtype = rows.scalar_type();
  const at::Tensor scores = at::mm(rows, widened(layer.router, dtype).t());
  const at::Tensor shares = scores.to(at_least_float32(dtype)).softmax(-1);
  auto [weights, chosen] = shares.topk(spec.experts.chosen, -1);
  if (watch) watch(shares, chosen);
  if (spec.experts.normalized) weights = weights / weights.sum(-1, /*keepdim=*/true);
  weights = weights.to(dtype);
  at::Tensor mixed = at::zeros_like(rows);
  for (std::size_t e = 0; e < layer.experts.size(); ++e) {
    const at::Tensor places = (chosen == static_cast<std::int64_t>(e)).nonzero();
    // With gradients, those of experts without a row are zeros: every process has all of them.
    if (places.size(0) == 0 && !at::GradMode::is_enabled()) continue;
    const at::Tensor of_rows = places.select(1, 0), rank = places.select(1, 1);
    const at::Tensor x = rows.index_select(0, of_rows);
    const Expert& expert = layer.experts[e];
    const auto map = [&](const at::Tensor& from, const Linear& linear) {
      return at::mm(from, widened(linear.weight, dtype).t());
    };
    const at::Tensor y =
        map(gated(spec.gate, map(x, expert.gate)) * map(x, expert.up), expert.down);
    const at::Tensor weight = at::index(weights, {of_rows, rank}).unsqueeze(1);
    mixed = mixed.index_add(0, of_rows, y * weight);
  }
  return mixed;
}

at::Tensor Network::hidden_states(const at::Tensor& ids, const at::Tensor& lengths) const {
  const std::int64_t count = ids.size(0), length = ids.size(1);
  const at::Tensor positions = at::arange(length, ids.options()).unsqueeze(0);
  std::vector<Rotary> rotaries =
      rotaries_at(positions, lengths.unsqueeze(1), at_least_float32(embedding.scalar_type()));
  for (Rotary& rotary : rotaries) rotary = {rotary.cos.unsqueeze(1), rotary.sin.unsqueeze(1)};
  // Rows of all tokens: two-dimensional products take the same path with and without gradient.
  at::Tensor x = embedded(embedding, ids.reshape(-1), embedding.scalar_type());
  if (spec.embedding_scale != 1) x = x * spec.embedding_scale;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const Layer layer = unfused(i);
    const LayerSpec& of = spec.layers[i];
    const auto normed = [&](const at::Tensor& rows, const at::Tensor& weight) {
      return weight.defined() ? rms_norm(rows, weight, of.norm) : rows;
    };
    const auto heads = [&](const at::Tensor& rows, const Linear& map, const at::Tensor& norm) {
      at::Tensor y = linear(rows, map, lora_scale);
      if (norm.defined()) y = rms_norm(y.view({count * length, -1, norm.size(0)}), norm, of.norm);
      return y.view({count, length, -1, options.head_dim}).transpose(1, 2);
    };
    const auto rotated = [&](const at::Tensor& y) {
      return of.rope == LayerSpec::kNoRope
                 ? y
                 : apply_rope(y, rotaries[static_cast<std::size_t>(of.rope)]);
    };
    const auto added = [&](const at::Tensor& y, const at::Tensor& norm) {
      const at::Tensor rows = normed(y, norm);
      return of.residual_scale == 1 ? x + rows : x + rows * of.residual_scale;
    };
    const at::Tensor input = normed(x, layer.attention_in_norm);
    const at::Tensor attended =
        attend(rotated(heads(input, layer.query, layer.query_norm)),
               rotated(heads(input, layer.key, layer.key_norm)), heads(input, layer.value, {}), of);
    x = added(
        linear(attended.transpose(1, 2).reshape({count * length, -1}), layer.output, lora_scale),
        layer.attention_out_norm);
    x = added(feed_forward(normed(x, layer.feed_in_norm), layer, of, lora_scale),
              layer.feed_out_norm);
  }
  return rms_norm(x, norm, spec.norm);
}

}  // namespace prefopt::detail
