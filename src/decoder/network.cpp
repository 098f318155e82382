// SPDX-License-Identifier: Apache-2.0
#include "decoder/network.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/silu.h>

#include <numbers>

#include "core/memory_pool.h"

namespace prefopt::detail {
namespace {

// Llama 3's stretched frequencies: long waves turn `factor` times slower, short ones as before, and
// between the two bounds the shares of both go from 1 to 0. Operations in transformers' order: a
// difference in the last bit grows with the position.
at::Tensor scaled_frequencies(const at::Tensor& frequencies, const DecoderOptions& options) {
  const auto context = static_cast<double>(options.rope_original_max_position_embeddings);
  const at::Tensor wavelengths = (2 * std::numbers::pi) / frequencies;
  const at::Tensor kept = ((context / wavelengths - options.rope_low_freq_factor) /
                           (options.rope_high_freq_factor - options.rope_low_freq_factor))
                              .clamp(0, 1);
  return (1 - kept) * frequencies / options.rope_scaling_factor + kept * frequencies;
}

}  // namespace

at::Tensor copy_of(const at::Tensor& weight) {
  if (!weight.is_cpu()) return weight.detach().clone();
  return empty_from_pool(weight.sizes(), weight.scalar_type()).copy_(weight.detach());
}

Rotary Network::rotary_at(const at::Tensor& positions, at::ScalarType dtype) const {
  const auto float32 = at::TensorOptions(at::kFloat).device(positions.device());
  const at::Tensor exponents =
      at::arange(0, options.head_dim, 2, float32) / static_cast<double>(options.head_dim);
  at::Tensor frequencies = at::pow(options.rope_theta, exponents).reciprocal();
  if (options.rope_scaling_factor != 1) frequencies = scaled_frequencies(frequencies, options);
  const at::Tensor angles = positions.to(at::kFloat).unsqueeze(-1) * frequencies;
  return {angles.cos().to(dtype), angles.sin().to(dtype)};
}

void check_padded_spec(const ModelSpec& spec, std::string_view where) {
  refuse_unsupported(spec, {}, "the padded forward", where);
}

// Dimension i is rotated with dimension i + head_dim / 2.
at::Tensor apply_rope(const at::Tensor& x, const Rotary& rotary) {
  const auto halves = x.to(rotary.cos.scalar_type()).chunk(2, -1);
  return at::cat({halves[0] * rotary.cos - halves[1] * rotary.sin,
                  halves[1] * rotary.cos + halves[0] * rotary.sin},
                 -1)
      .to(x.scalar_type());
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.to(at_least_float32(x.scalar_type()));
  const at::Tensor scale = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps);
  // A norm may be wider than the matrices around it.
  return (weight * (wide * scale).to(x.scalar_type())).to(x.scalar_type());
}

at::Tensor linear(const at::Tensor& rows, const Linear& map, double lora_scale) {
  at::Tensor result = map.bias.defined()
                          ? at::addmm(map.bias.to(rows.scalar_type()), rows, map.weight.t())
                          : at::mm(rows, map.weight.t());
  if (map.lora_a.defined()) {
    // Adapters are at least float32; the sum is rounded once.
    const at::Tensor wide = rows.to(map.lora_a.scalar_type());
    const at::Tensor added = lora_scale * at::mm(at::mm(wide, map.lora_a.t()), map.lora_b.t());
    result = (result + added).to(rows.scalar_type());
  }
  return result;
}

at::Tensor add_feed_forward(const at::Tensor& x, const Layer& layer, double eps,
                            double lora_scale) {
  const at::Tensor normed = rms_norm(x, layer.post_attention_norm, eps);
  const at::Tensor gated =
      at::silu(linear(normed, layer.gate, lora_scale)) * linear(normed, layer.up, lora_scale);
  return x + linear(gated, layer.down, lora_scale);
}

at::Tensor embed(const at::Tensor& embedding, const at::Tensor& ids) {
  return at::embedding(embedding, ids);
}

at::Tensor repeat_heads(const at::Tensor& x, std::int64_t groups) {
  if (groups == 1) return x;
  return x.unsqueeze(2)
      .expand({-1, -1, groups, -1, -1})
      .reshape({x.size(0), x.size(1) * groups, x.size(2), x.size(3)});
}

}  // namespace prefopt::detail
