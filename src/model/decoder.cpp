// SPDX-License-Identifier: Apache-2.0
#include "prefopt/model/decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "model/decoder_config.h"
#include "model/decoder_files.h"
#include "model/decoding.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

struct Layer {
  at::Tensor input_norm, query, key, value, output, post_attention_norm, gate, up, down;
};

// Rotations of one token grid, [S or 1, 1, T, head_dim / 2] each.
struct Rotary {
  at::Tensor cos, sin;
};

// Angles are float32 whatever the dtype of the weights, as in transformers: a float64 run is then
// the exact value of what a float32 run computes.
Rotary rotary_at(const at::Tensor& positions, const DecoderOptions& options, at::ScalarType dtype) {
  const auto float32 = at::TensorOptions(at::kFloat).device(positions.device());
  const at::Tensor exponents =
      at::arange(0, options.head_dim, 2, float32) / static_cast<double>(options.head_dim);
  const at::Tensor frequencies = at::pow(options.rope_theta, exponents).reciprocal();
  const at::Tensor angles = positions.to(at::kFloat).unsqueeze(-1) * frequencies;
  return {angles.cos().to(dtype).unsqueeze(1), angles.sin().to(dtype).unsqueeze(1)};
}

at::ScalarType at_least_float32(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// x [S, heads, T, head_dim]; dimension i turns with dimension i + head_dim / 2.
at::Tensor rotate(const at::Tensor& x, const Rotary& rotary) {
  const auto halves = x.to(rotary.cos.scalar_type()).chunk(2, -1);
  return at::cat({halves[0] * rotary.cos - halves[1] * rotary.sin,
                  halves[1] * rotary.cos + halves[0] * rotary.sin},
                 -1)
      .to(x.scalar_type());
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.to(at_least_float32(x.scalar_type()));
  const at::Tensor scale = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps);
  return weight * (wide * scale).to(x.scalar_type());
}

// [S, kv_heads, T, D] to [S, kv_heads * groups, T, D]: each head `groups` times in a row.
at::Tensor repeat_heads(const at::Tensor& x, std::int64_t groups) {
  if (groups == 1) return x;
  return x.unsqueeze(2)
      .expand({-1, -1, groups, -1, -1})
      .reshape({x.size(0), x.size(1) * groups, x.size(2), x.size(3)});
}

at::Tensor linear(const at::Tensor& rows, const at::Tensor& weight) {
  return at::mm(rows, weight.t());
}

// Weights and arithmetic, without files.
struct Network {
  DecoderOptions options;
  at::Tensor embedding, norm, lm_head;
  std::vector<Layer> layers;

  std::int64_t groups() const { return options.num_attention_heads / options.num_key_value_heads; }
  const at::Tensor& head() const { return options.tie_word_embeddings ? embedding : lm_head; }

  /// Calls `visit(name, tensor, shape)` for each weight, in transformers' order.
  template <class Visit>
  void for_each_weight(Visit&& visit) {
    using Shape = std::vector<std::int64_t>;
    const std::int64_t hidden = options.hidden_size;
    const Shape vocab_by_hidden{options.vocab_size, hidden};
    const std::int64_t queries = options.num_attention_heads * options.head_dim;
    const std::int64_t keys = options.num_key_value_heads * options.head_dim;
    const std::int64_t wide = options.intermediate_size;
    visit("model.embed_tokens.weight", embedding, vocab_by_hidden);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const auto name = [&](const char* part) {
        return fmt::format("model.layers.{}.{}.weight", i, part);
      };
      Layer& layer = layers[i];
      visit(name("self_attn.q_proj"), layer.query, Shape{queries, hidden});
      visit(name("self_attn.k_proj"), layer.key, Shape{keys, hidden});
      visit(name("self_attn.v_proj"), layer.value, Shape{keys, hidden});
      visit(name("self_attn.o_proj"), layer.output, Shape{hidden, queries});
      visit(name("mlp.gate_proj"), layer.gate, Shape{wide, hidden});
      visit(name("mlp.up_proj"), layer.up, Shape{wide, hidden});
      visit(name("mlp.down_proj"), layer.down, Shape{hidden, wide});
      visit(name("input_layernorm"), layer.input_norm, Shape{hidden});
      visit(name("post_attention_layernorm"), layer.post_attention_norm, Shape{hidden});
    }
    visit("model.norm.weight", norm, Shape{hidden});
    if (!options.tie_word_embeddings) visit("lm_head.weight", lm_head, vocab_by_hidden);
  }

  /// Hidden states [S * T, hidden] in front of the head. `positions` is [S or 1, T];
  /// `attend(layer index, q, k, v)` takes [S, heads, T, head_dim] and gives the same for queries.
  template <class Attend>
  at::Tensor hidden_states(const at::Tensor& ids, const at::Tensor& positions,
                           Attend&& attend) const {
    const std::int64_t count = ids.size(0);
    const std::int64_t length = ids.size(1);
    const Rotary rotary = rotary_at(positions, options, at_least_float32(embedding.scalar_type()));
    const auto heads = [&](const at::Tensor& rows, const at::Tensor& weight) {
      return linear(rows, weight).view({count, length, -1, options.head_dim}).transpose(1, 2);
    };
    // Rows of all tokens: two-dimensional products take the same path with and without gradient.
    at::Tensor x = at::embedding(embedding, ids.reshape(-1));
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const Layer& layer = layers[i];
      at::Tensor normed = rms_norm(x, layer.input_norm, options.rms_norm_eps);
      const at::Tensor attended =
          attend(i, rotate(heads(normed, layer.query), rotary),
                 rotate(heads(normed, layer.key), rotary), heads(normed, layer.value));
      x = x + linear(attended.transpose(1, 2).reshape({count * length, -1}), layer.output);
      normed = rms_norm(x, layer.post_attention_norm, options.rms_norm_eps);
      x = x + linear(at::silu(linear(normed, layer.gate)) * linear(normed, layer.up), layer.down);
    }
    return rms_norm(x, norm, options.rms_norm_eps);
  }
};

// Keys and values of all tokens so far. Prompts are padded on the left, so that all sequences grow
// at the same column; the network must outlive the session.
class CachedSession final : public DecodeSession {
 public:
  CachedSession(const Network& network, std::vector<std::vector<std::int64_t>> prompts)
      : network_(network), prompts_(std::move(prompts)), caches_(network.layers.size()) {}

  at::Tensor prefill() override {
    std::size_t longest = 0;
    for (const auto& prompt : prompts_) longest = std::max(longest, prompt.size());
    const auto width = static_cast<std::int64_t>(longest);
    const std::int64_t count = std::ssize(prompts_);
    const at::Tensor ids = at::zeros({count, width}, at::kLong);
    const at::Tensor padding = at::zeros({count, 1}, at::kLong);
    for (std::int64_t s = 0; s < count; ++s) {
      const auto& prompt = prompts_[static_cast<std::size_t>(s)];
      const std::int64_t pad = width - std::ssize(prompt);
      std::copy(prompt.begin(), prompt.end(), ids[s].mutable_data_ptr<std::int64_t>() + pad);
      padding[s] = pad;
    }
    padding_ = padding.to(network_.embedding.device());
    length_ = 0;
    return advance(ids.to(padding_.device()));
  }

  at::Tensor append(const at::Tensor& tokens) override {
    if (!padding_.defined()) {
      throw ConfigError("append: expected prefill to be called first, got append");
    }
    detail::check_appended_tokens(tokens, std::ssize(prompts_), network_.options.vocab_size);
    return advance(tokens.to(padding_.device()).unsqueeze(1));
  }

 private:
  struct Cache {
    at::Tensor keys, values;  // [S, kv_heads, capacity, head_dim]
  };

  // Runs [S, n] further tokens; logits after the last one.
  at::Tensor advance(const at::Tensor& ids) {
    const at::NoGradGuard no_grad;
    const std::int64_t begin = length_;
    length_ += ids.size(1);
    reserve(length_);
    const at::Tensor columns = at::arange(length_, padding_.options());
    const at::Tensor rows = columns.slice(0, begin).unsqueeze(1);
    // [S, 1, n, length]: earlier real tokens. A padding token sees itself, because a softmax over
    // nothing would be NaN.
    const at::Tensor visible = (columns.ge(padding_).unsqueeze(1).logical_and(columns.le(rows)))
                                   .logical_or(columns.eq(rows))
                                   .unsqueeze(1);
    const at::Tensor positions = (columns.slice(0, begin) - padding_).clamp_min(0);
    const at::Tensor hidden = network_.hidden_states(
        ids, positions,
        [&](std::size_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
          return attend(caches_[layer], begin, q, k, v, visible);
        });
    const at::Tensor last = hidden.view({ids.size(0), ids.size(1), -1}).select(1, ids.size(1) - 1);
    return linear(last, network_.head());
  }

  at::Tensor attend(Cache& cache, std::int64_t begin, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v, const at::Tensor& visible) const {
    cache.keys.slice(2, begin, length_).copy_(k);
    cache.values.slice(2, begin, length_).copy_(v);
    const at::Tensor keys = cache.keys.slice(2, 0, length_);
    const at::Tensor values = cache.values.slice(2, 0, length_);
    const std::int64_t groups = network_.groups();
    if (q.size(2) == 1) {
      // One query a head: the heads of a group stand in as its time steps, and no key is copied.
      const at::Tensor grouped = q.reshape({q.size(0), q.size(1) / groups, groups, q.size(3)});
      return at::scaled_dot_product_attention(grouped, keys, values, visible).reshape(q.sizes());
    }
    return at::scaled_dot_product_attention(q, repeat_heads(keys, groups),
                                            repeat_heads(values, groups), visible);
  }

  void reserve(std::int64_t length) {
    if (length <= capacity_) return;
    const std::int64_t old = capacity_;
    capacity_ = std::max(length, 2 * old);
    for (Cache& cache : caches_) {
      for (at::Tensor* stored : {&cache.keys, &cache.values}) {
        at::Tensor grown = at::empty({std::ssize(prompts_), network_.options.num_key_value_heads,
                                      capacity_, network_.options.head_dim},
                                     network_.embedding.options().requires_grad(false));
        if (old > 0) grown.slice(2, 0, old).copy_(*stored);
        *stored = std::move(grown);
      }
    }
  }

  const Network& network_;
  std::vector<std::vector<std::int64_t>> prompts_;
  std::vector<Cache> caches_;
  at::Tensor padding_;  // [S, 1] tokens in front of each prompt
  std::int64_t length_ = 0;
  std::int64_t capacity_ = 0;
};

}  // namespace

struct Decoder::Impl {
  Network network;
  detail::Json config;
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
};

Decoder::Decoder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Decoder::~Decoder() = default;

Decoder::Decoder(DecoderOptions options) : impl_(std::make_unique<Impl>()) {
  Network& network = impl_->network;
  network.options = detail::checked_decoder_options(options, "decoder");
  network.layers.resize(static_cast<std::size_t>(network.options.num_hidden_layers));
  network.for_each_weight(
      [&](const std::string&, at::Tensor& weight, const std::vector<std::int64_t>& shape) {
        const bool norm = shape.size() == 1;
        weight = norm ? at::ones(shape) : at::randn(shape) * network.options.initializer_range;
        weight.requires_grad_(true);
      });
  impl_->config = detail::make_decoder_config(network.options);
}

std::shared_ptr<Decoder> Decoder::load(const std::string& path, std::string_view dtype) {
  std::optional<at::ScalarType> wanted;
  if (dtype != "keep") wanted = parse_dtype(dtype);
  detail::DecoderReader reader(path, wanted);
  auto impl = std::make_unique<Impl>();
  impl->config = reader.config().json;
  impl->metadata = reader.metadata();
  Network& network = impl->network;
  network.options = reader.config().options;
  network.layers.resize(static_cast<std::size_t>(network.options.num_hidden_layers));
  network.for_each_weight(
      [&](const std::string& name, at::Tensor& weight, const std::vector<std::int64_t>& shape) {
        weight = reader.take(name, shape);
      });
  reader.check_nothing_left(network.options.tie_word_embeddings ? network.embedding : at::Tensor(),
                            "model.embed_tokens.weight");
  std::shared_ptr<Decoder> decoder(new Decoder(std::move(impl)));
  decoder->set_requires_grad(true);
  return decoder;
}

PolicyOutput Decoder::forward(const TokenBatch& batch) {
  const Network& network = impl_->network;
  const at::Tensor& ids = batch.input_ids;
  if (ids.scalar_type() != at::kLong) {
    throw DtypeError(
        fmt::format("decoder: expected int64 input_ids, got {}", c10::toString(ids.scalar_type())));
  }
  if (ids.dim() != 2 || ids.numel() == 0) {
    throw ShapeError(fmt::format("decoder: expected input_ids [S, T] of at least one token, got {}",
                                 c10::str(ids.sizes())));
  }
  if (ids.device() != network.embedding.device()) {
    throw DeviceError(fmt::format("decoder: expected input_ids on {}, got {}",
                                  network.embedding.device().str(), ids.device().str()));
  }
  detail::check_token_ids(ids, network.options.vocab_size, "decoder");

  const at::Tensor positions = at::arange(ids.size(1), ids.options()).unsqueeze(0);
  const std::int64_t groups = network.groups();
  // Padding stands on the right, where the causal mask hides it from every real token.
  const at::Tensor hidden = network.hidden_states(
      ids, positions,
      [&](std::size_t, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
        return at::scaled_dot_product_attention(q, repeat_heads(k, groups), repeat_heads(v, groups),
                                                /*attn_mask=*/{},
                                                /*dropout_p=*/0.0, /*is_causal=*/true);
      });
  return {.hidden = hidden.view({ids.size(0), ids.size(1), -1}), .logits = {}};
}

OutputHead Decoder::head() const { return {.weight = impl_->network.head()}; }

std::int64_t Decoder::vocab_size() const { return impl_->network.options.vocab_size; }

std::vector<NamedParameter> Decoder::named_parameters() const {
  std::vector<NamedParameter> parameters;
  impl_->network.for_each_weight(
      [&](const std::string& name, const at::Tensor& weight, const std::vector<std::int64_t>&) {
        parameters.push_back({name, weight});
      });
  return parameters;
}

std::string Decoder::config() const { return options_to_json(impl_->network.options); }

std::shared_ptr<Policy> Decoder::frozen_copy() const {
  auto copy = std::make_unique<Impl>(*impl_);
  copy->network.for_each_weight(
      [](const std::string&, at::Tensor& weight, const std::vector<std::int64_t>&) {
        weight = weight.detach().clone();
      });
  return std::shared_ptr<Decoder>(new Decoder(std::move(copy)));
}

void Decoder::save(const std::string& directory) const {
  detail::write_decoder(directory, named_parameters(), impl_->metadata, impl_->config);
}

std::unique_ptr<DecodeSession> Decoder::start_decoding(
    const std::vector<std::vector<std::int64_t>>& prompts) {
  detail::check_prompts(prompts, vocab_size());
  return std::make_unique<CachedSession>(impl_->network, prompts);
}

const DecoderOptions& Decoder::options() const { return impl_->network.options; }

void Decoder::to(at::ScalarType dtype) {
  impl_->network.for_each_weight(
      [&](const std::string&, at::Tensor& weight, const std::vector<std::int64_t>&) {
        weight = weight.detach().to(dtype).requires_grad_(weight.requires_grad());
      });
}

at::ScalarType parse_dtype(std::string_view name) {
  if (name == "float32") return at::kFloat;
  if (name == "float64") return at::kDouble;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  throw ConfigError(
      fmt::format("dtype: expected 'float32', 'float64', 'bfloat16' or 'float16', got '{}'", name));
}

}  // namespace prefopt
