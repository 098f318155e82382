// SPDX-License-Identifier: Apache-2.0
#include "decoder/gguf_decoder.h"

#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "core/text.h"
#include "decoder/families/family.h"
#include "decoder/gguf_fields.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

// Behind "ARCHITECTURE.", read below.
constexpr std::array kGgufUnderstood = std::to_array<std::string_view>({
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
});

// Notes on how the weights were made.
constexpr std::array kGgufHarmless = std::to_array<std::string_view>({
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
});

// Only the value that leaves results as this decoder computes them is taken.
std::vector<RequiredValue> gguf_required_values() {
  return {
      {"attention.causal", true},       {"expert_count", 0},          {"expert_used_count", 0},
      {"rope.scale_linear", 1.0},       {"rope.scaling.factor", 1.0}, {"rope.scaling.type", "none"},
      {"use_parallel_residual", false},
  };
}

KnownFields known_gguf_fields(const Family& family) {
  KnownFields known{.understood = family.gguf_understood(),
                    .harmless = kGgufHarmless,
                    .required = gguf_required_values()};
  std::erase_if(known.required,
                [&](const RequiredValue& field) { return contains(known.understood, field.name); });
  known.understood.insert(known.understood.end(), kGgufUnderstood.begin(), kGgufUnderstood.end());
  return known;
}

struct PartName {
  std::string_view gguf, hugging_face;
};

constexpr std::array kLayerParts = std::to_array<PartName>({
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"attn_output", "self_attn.o_proj"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
});

constexpr std::array kModelParts = std::to_array<PartName>({
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
});

// "attn_q" of "blk.12.attn_q.weight", with the parts before and behind it; empty where there is no
// such form.
struct LayerTensor {
  std::string_view layer, part, suffix;
};

LayerTensor split_layer_name(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  const auto part_at = name.find('.', kPrefix.size());
  const auto suffix_at = name.rfind('.');
  if (!name.starts_with(kPrefix) || part_at == std::string_view::npos || suffix_at <= part_at) {
    return {};
  }
  return {.layer = name.substr(kPrefix.size(), part_at - kPrefix.size()),
          .part = name.substr(part_at + 1, suffix_at - part_at - 1),
          .suffix = name.substr(suffix_at + 1)};
}

// Returns the number by which Llama 3's scaling divides frequency theta^(-2 index / head_dim).
double llama3_divisor(const DecoderOptions& options, std::int64_t index) {
  const double frequency = std::pow(options.rope_theta, -2.0 * static_cast<double>(index) /
                                                            static_cast<double>(options.head_dim));
  const double turns = static_cast<double>(options.rope_original_max_position_embeddings) *
                       frequency / (2 * std::numbers::pi);
  const double low = options.rope_low_freq_factor;
  const double high = options.rope_high_freq_factor;
  if (turns > high) return 1;
  if (turns < low) return options.rope_scaling_factor;
  const double share = (turns - low) / (high - low);
  return 1 / ((1 - share) / options.rope_scaling_factor + share);
}

const Family& read_gguf_family(const GgufFields& fields) {
  const Family* family = find_gguf_family(fields.architecture());
  if (!family) {
    std::vector<std::string_view> names;
    for (const Family* known : families()) {
      if (!known->traits.gguf.empty()) names.push_back(known->traits.gguf);
    }
    fields.fail("general.architecture to be " + list_names(names, '\''),
                "'" + fields.architecture() + "'");
  }
  const GgufFile& file = fields.file();
  if (file.has("general.type") && file.text("general.type") != "model") {
    fields.fail("general.type to be 'model'", "'" + file.text("general.type") + "'");
  }
  if (file.has("split.count") && file.integer("split.count") > 1) {
    fields.fail("a model in one file", fmt::format("split.count {}", file.integer("split.count")));
  }
  return *family;
}

std::int64_t embedding_rows(const GgufFields& fields) {
  const GgufTensor* embedding = fields.file().find_tensor("token_embd.weight");
  if (!embedding || embedding->shape.size() != 2) {
    fields.fail("tensor 'token_embd.weight' of two dimensions",
                embedding ? c10::str(at::IntArrayRef(embedding->shape)) : "none of that name");
  }
  const std::int64_t rows = embedding->shape[0];
  if (fields.has("vocab_size") && fields.integer("vocab_size") != rows) {
    fields.fail(
        fmt::format("{} to be the rows of 'token_embd.weight', {}", fields.key("vocab_size"), rows),
        fmt::format("{}", fields.integer("vocab_size")));
  }
  return rows;
}

void read_gguf_sizes(const GgufFields& fields, DecoderOptions& options) {
  options.num_hidden_layers = fields.integer("block_count");
  options.max_position_embeddings = fields.integer("context_length");
  options.hidden_size = fields.integer("embedding_length");
  options.intermediate_size = fields.integer("feed_forward_length");
  options.num_attention_heads = fields.integer("attention.head_count");
  options.num_key_value_heads = fields.has("attention.head_count_kv")
                                    ? fields.integer("attention.head_count_kv")
                                    : options.num_attention_heads;
  options.head_dim =
      fields.has("attention.key_length") ? fields.integer("attention.key_length") : 0;
  options.rms_norm_eps = fields.real("attention.layer_norm_rms_epsilon");
  options.rope_theta = fields.has("rope.freq_base") ? fields.real("rope.freq_base") : 10000;
  options.vocab_size = embedding_rows(fields);
}

// The file's tensors tell what is part of the model.
void read_gguf_parts(const GgufFile& file, DecoderOptions& options) {
  options.tie_word_embeddings = file.find_tensor("output.weight") == nullptr;
  options.attention_bias = file.find_tensor("blk.0.attn_q.bias") != nullptr;
  options.attention_output_bias = file.find_tensor("blk.0.attn_output.bias") != nullptr;
}

void read_gguf_tokens(const GgufFile& file, DecoderOptions& options) {
  const auto token = [&](std::string_view key) { return file.has(key) ? file.integer(key) : -1; };
  options.bos_token_id = token("tokenizer.ggml.bos_token_id");
  options.eos_token_id = token("tokenizer.ggml.eos_token_id");
  options.pad_token_id = token("tokenizer.ggml.padding_token_id");
  // The ends of a turn and of a message.
  for (const char* name : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    if (const std::int64_t id = token(name); id >= 0) options.extra_eos_token_ids.push_back(id);
  }
}

void read_gguf_window(const GgufFields& fields, DecoderOptions& options) {
  constexpr std::string_view kName = "attention.sliding_window";
  if (!fields.has(kName)) return;
  options.sliding_window = fields.integer(kName);
  if (options.sliding_window >= 0 && options.sliding_window <= kMaxDecoderSize) return;
  fields.fail(fmt::format("{} in [0, {}]", fields.key(kName), kMaxDecoderSize),
              fmt::format("{}", options.sliding_window));
}

void check_gguf_head_dim(const GgufFields& fields, std::int64_t head_dim) {
  for (const char* name : {"attention.value_length", "rope.dimension_count"}) {
    if (!fields.has(name) || fields.integer(name) == head_dim) continue;
    fields.fail(fmt::format("{} to be the width of a head, {}", fields.key(name), head_dim),
                fmt::format("{}", fields.integer(name)));
  }
}

// The file has the divisors and not the numbers that they were made of; those are Llama 3's, but
// for the factor, or unknown here.
void read_rope_factors(const GgufFields& fields, DecoderOptions& options) {
  const GgufTensor* found = fields.file().find_tensor(kGgufRopeFactors);
  if (!found) return;
  const std::int64_t count = options.head_dim / 2;
  if (found->shape != std::vector<std::int64_t>{count}) {
    fields.fail(fmt::format("tensor '{}' of shape [{}]", kGgufRopeFactors, count),
                c10::str(at::IntArrayRef(found->shape)));
  }
  const at::Tensor divisors = fields.file().tensor(kGgufRopeFactors, at::kDouble);
  const auto* given = divisors.const_data_ptr<double>();
  options.rope_scaling_factor = shortest(given[count - 1]);
  for (std::int64_t i = 0; i < count; ++i) {
    const double expected = llama3_divisor(options, i);
    if (!(std::abs(given[i] - expected) <= 1e-4 * expected)) {
      fields.fail(
          fmt::format("tensor '{}' to be Llama 3's scaling by {} over 8192 tokens, {} at {}",
                      kGgufRopeFactors, options.rope_scaling_factor, expected, i),
          fmt::format("{}", given[i]));
    }
  }
}

DecoderOptions read_gguf_options(const GgufFile& file) {
  const GgufFields fields(file);
  const Family& family = read_gguf_family(fields);
  fields.check(known_gguf_fields(family));
  DecoderOptions options;
  options.family = family.traits.model_type;
  read_gguf_sizes(fields, options);
  read_gguf_parts(file, options);
  family.read_gguf(fields, options);
  read_gguf_tokens(file, options);
  read_gguf_window(fields, options);
  options = checked_decoder_options(options, file.path());
  check_gguf_head_dim(fields, options.head_dim);
  read_rope_factors(fields, options);
  return checked_decoder_options(options, file.path());
}

// For some families llama.cpp rotates neighbours where Hugging Face rotates halves, and its
// converter reorders the rows of each head for that: row 2 i + j of the file's head is row j
// head_dim / 2 + i.
at::Tensor halves_from_pairs(const at::Tensor& weight, std::int64_t heads) {
  return weight.view({heads, weight.size(0) / heads / 2, 2, -1}).transpose(1, 2).reshape_as(weight);
}

at::Tensor pairs_from_halves(const at::Tensor& weight, std::int64_t heads) {
  return weight.reshape({heads, 2, weight.size(0) / heads / 2, -1})
      .transpose(1, 2)
      .reshape(weight.sizes());
}

// Heads whose rows are in another order in the family's files; 0: none.
std::int64_t reordered_heads(const Family* family, std::string_view gguf_name,
                             const DecoderOptions& options) {
  if (!family || !family->traits.gguf_neighbours) return 0;
  const std::string_view part = split_layer_name(gguf_name).part;
  if (part == "attn_q") return options.num_attention_heads;
  return part == "attn_k" ? options.num_key_value_heads : 0;
}

}  // namespace

DecoderConfig read_gguf_config(const GgufFile& file) {
  try {
    DecoderOptions options = read_gguf_options(file);
    const std::vector<std::int64_t> ends = end_tokens_of(options);
    if (!ends.empty()) {
      options.eos_token_id = ends.front();
      options.extra_eos_token_ids.assign(ends.begin() + 1, ends.end());
    }
    return {options, make_decoder_config(options), make_generation_config(options)};
  } catch (const ConfigError& error) {
    throw CheckpointError(error.what());
  }
}

std::string hugging_face_name(std::string_view gguf_name) {
  for (const PartName& known : kModelParts) {
    if (known.gguf == gguf_name) return std::string(known.hugging_face);
  }
  const LayerTensor tensor = split_layer_name(gguf_name);
  for (const PartName& known : kLayerParts) {
    if (known.gguf == tensor.part) {
      return fmt::format("model.layers.{}.{}.{}", tensor.layer, known.hugging_face, tensor.suffix);
    }
  }
  return "";
}

at::Tensor read_gguf_weight(const GgufFile& file, const std::string& gguf_name,
                            const DecoderOptions& options, at::ScalarType dtype) {
  at::Tensor weight = file.tensor(gguf_name, dtype);
  const std::int64_t heads =
      reordered_heads(find_gguf_family(file.text("general.architecture")), gguf_name, options);
  return heads > 0 ? halves_from_pairs(weight, heads) : weight;
}

std::string gguf_name(std::string_view hugging_face_name) {
  for (const PartName& known : kModelParts) {
    if (known.hugging_face == hugging_face_name) return std::string(known.gguf);
  }
  constexpr std::string_view kPrefix = "model.layers.";
  if (!hugging_face_name.starts_with(kPrefix)) return "";
  const std::string_view name = hugging_face_name.substr(kPrefix.size());
  const auto part_at = name.find('.');
  const auto suffix_at = name.rfind('.');
  for (const PartName& known : kLayerParts) {
    if (part_at >= suffix_at ||
        known.hugging_face != name.substr(part_at + 1, suffix_at - part_at - 1)) {
      continue;
    }
    return fmt::format("blk.{}.{}{}", name.substr(0, part_at), known.gguf, name.substr(suffix_at));
  }
  return "";
}

at::Tensor gguf_weight(const at::Tensor& weight, std::string_view gguf_name,
                       std::string_view architecture, const DecoderOptions& options) {
  const std::int64_t heads = reordered_heads(find_gguf_family(architecture), gguf_name, options);
  return heads > 0 ? pairs_from_halves(weight, heads) : weight;
}

at::Tensor gguf_rope_factors(const DecoderOptions& options) {
  at::Tensor factors = at::empty({options.head_dim / 2}, at::kFloat);
  auto* values = factors.mutable_data_ptr<float>();
  for (std::int64_t i = 0; i < factors.numel(); ++i) {
    values[i] = static_cast<float>(llama3_divisor(options, i));
  }
  return factors;
}

}  // namespace prefopt::detail
