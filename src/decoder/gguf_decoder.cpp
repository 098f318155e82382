// SPDX-License-Identifier: Apache-2.0
#include "decoder/gguf_decoder.h"

#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "core/text.h"
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

// Says of what the weights were made, not what to compute.
constexpr std::array kGgufHarmless = std::to_array<std::string_view>({
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
});

// Would change results: only the value that leaves them as the decoder computes is taken.
struct GgufRequired {
  std::string_view name;
  Json value;
};

const std::vector<GgufRequired>& gguf_required_values() {
  static const std::vector<GgufRequired> kRequired = {
      {"attention.causal", true},       {"expert_count", 0},          {"expert_used_count", 0},
      {"rope.scale_linear", 1.0},       {"rope.scaling.factor", 1.0}, {"rope.scaling.type", "none"},
      {"use_parallel_residual", false},
  };
  return kRequired;
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

// "attn_q" of "blk.12.attn_q.weight", with what stands before and behind; empty where there is no
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

// What a float32 of a file was written for: 1e-05 and not 9.99999974737875e-06.
double shortest(double value) {
  const auto narrow = static_cast<float>(value);
  if (!std::isfinite(narrow) || static_cast<double>(narrow) != value) return value;
  return Json::parse(fmt::format("{}", narrow)).get<double>();
}

// What Llama 3's scaling divides frequency theta^(-2 index / head_dim) by.
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

class GgufConfigReader {
 public:
  explicit GgufConfigReader(const GgufFile& file)
      : file_(file), architecture_(file.text("general.architecture")) {}

  DecoderOptions read() const {
    check_kind();
    check_keys();
    check_required_values();
    DecoderOptions options;
    options.num_hidden_layers = integer("block_count");
    options.max_position_embeddings = integer("context_length");
    options.hidden_size = integer("embedding_length");
    options.intermediate_size = integer("feed_forward_length");
    options.num_attention_heads = integer("attention.head_count");
    options.num_key_value_heads = has("attention.head_count_kv")
                                      ? integer("attention.head_count_kv")
                                      : options.num_attention_heads;
    options.head_dim = has("attention.key_length") ? integer("attention.key_length") : 0;
    options.rms_norm_eps = real("attention.layer_norm_rms_epsilon");
    options.rope_theta = has("rope.freq_base") ? real("rope.freq_base") : 10000;
    options.vocab_size = embedding_rows();
    options.tie_word_embeddings = file_.find_tensor("output.weight") == nullptr;
    options.attention_bias = architecture_ == "qwen2" || file_.find_tensor("blk.0.attn_q.bias");
    options.attention_output_bias = file_.find_tensor("blk.0.attn_output.bias") != nullptr;
    options.qk_norm = architecture_ == "qwen3";
    options.bos_token_id = token("tokenizer.ggml.bos_token_id");
    options.eos_token_id = token("tokenizer.ggml.eos_token_id");
    options.pad_token_id = token("tokenizer.ggml.padding_token_id");
    // The ends of a turn and of a message.
    for (const char* name : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
      if (const std::int64_t id = token(name); id >= 0) options.extra_eos_token_ids.push_back(id);
    }
    if (has("attention.sliding_window")) {
      options.sliding_window = integer("attention.sliding_window");
      if (options.sliding_window < 0 || options.sliding_window > kMaxDecoderSize) {
        fail(fmt::format("{} in [0, {}]", key("attention.sliding_window"), kMaxDecoderSize),
             fmt::format("{}", options.sliding_window));
      }
    }
    options = checked_decoder_options(options, file_.path());
    check_head_dim(options);
    read_rope_factors(options);
    return checked_decoder_options(options, file_.path());
  }

 private:
  void check_kind() const {
    constexpr std::array<std::string_view, 3> kArchitectures{"llama", "qwen2", "qwen3"};
    if (!contains(kArchitectures, architecture_)) {
      fail("general.architecture to be 'llama', 'qwen2' or 'qwen3'", "'" + architecture_ + "'");
    }
    if (file_.has("general.type") && file_.text("general.type") != "model") {
      fail("general.type to be 'model'", "'" + file_.text("general.type") + "'");
    }
    if (file_.has("split.count") && file_.integer("split.count") > 1) {
      fail("a model in one file", fmt::format("split.count {}", file_.integer("split.count")));
    }
  }

  // What other prefixes lead is about the tokenizer, or notes.
  void check_keys() const {
    const std::string prefix = architecture_ + ".";
    for (const std::string& key : file_.keys()) {
      if (!key.starts_with(prefix)) continue;
      const std::string_view name = std::string_view(key).substr(prefix.size());
      const auto is_it = [&](const GgufRequired& field) { return field.name == name; };
      if (!contains(kGgufUnderstood, name) && !contains(kGgufHarmless, name) &&
          std::none_of(gguf_required_values().begin(), gguf_required_values().end(), is_it)) {
        fail("metadata that this decoder understands", "'" + key + "'");
      }
    }
  }

  void check_required_values() const {
    for (const auto& [name, value] : gguf_required_values()) {
      if (!has(name)) continue;
      const Json given = json_like(value, key(name));
      if (given != value) {
        fail(fmt::format("{} to be {}", key(name), shown_json(value)), shown_json(given));
      }
    }
  }

  Json json_like(const Json& value, const std::string& key) const {
    if (value.is_boolean()) return file_.flag(key);
    if (value.is_string()) return file_.text(key);
    if (value.is_number_float()) return file_.real(key);
    return file_.integer(key);
  }

  std::int64_t embedding_rows() const {
    const GgufTensor* embedding = file_.find_tensor("token_embd.weight");
    if (!embedding || embedding->shape.size() != 2) {
      fail("tensor 'token_embd.weight' of two dimensions",
           embedding ? c10::str(at::IntArrayRef(embedding->shape)) : "none of that name");
    }
    const std::int64_t rows = embedding->shape[0];
    if (has("vocab_size") && integer("vocab_size") != rows) {
      fail(fmt::format("{} to be the rows of 'token_embd.weight', {}", key("vocab_size"), rows),
           fmt::format("{}", integer("vocab_size")));
    }
    return rows;
  }

  void check_head_dim(const DecoderOptions& options) const {
    for (const char* name : {"attention.value_length", "rope.dimension_count"}) {
      if (has(name) && integer(name) != options.head_dim) {
        fail(fmt::format("{} to be the width of a head, {}", key(name), options.head_dim),
             fmt::format("{}", integer(name)));
      }
    }
  }

  // The file has the divisors and not the numbers that they were made of; those are Llama 3's, but
  // for the factor, or unknown here.
  void read_rope_factors(DecoderOptions& options) const {
    const GgufTensor* found = file_.find_tensor(kGgufRopeFactors);
    if (!found) return;
    const std::int64_t count = options.head_dim / 2;
    if (found->shape != std::vector<std::int64_t>{count}) {
      fail(fmt::format("tensor '{}' of shape [{}]", kGgufRopeFactors, count),
           c10::str(at::IntArrayRef(found->shape)));
    }
    const at::Tensor divisors = file_.tensor(kGgufRopeFactors, at::kDouble);
    const auto* given = divisors.const_data_ptr<double>();
    options.rope_scaling_factor = shortest(given[count - 1]);
    for (std::int64_t i = 0; i < count; ++i) {
      const double expected = llama3_divisor(options, i);
      if (!(std::abs(given[i] - expected) <= 1e-4 * expected)) {
        fail(fmt::format("tensor '{}' to be Llama 3's scaling by {} over 8192 tokens, {} at {}",
                         kGgufRopeFactors, options.rope_scaling_factor, expected, i),
             fmt::format("{}", given[i]));
      }
    }
  }

  std::int64_t token(std::string_view key) const {
    return file_.has(key) ? file_.integer(key) : -1;
  }

  std::string key(std::string_view name) const { return fmt::format("{}.{}", architecture_, name); }
  bool has(std::string_view name) const { return file_.has(key(name)); }
  std::int64_t integer(std::string_view name) const { return file_.integer(key(name)); }
  double real(std::string_view name) const { return shortest(file_.real(key(name))); }

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw CheckpointError(fmt::format("{}: expected {}, got {}", file_.path(), expected, got));
  }

  const GgufFile& file_;
  std::string architecture_;
};

// llama.cpp turns neighbours where Hugging Face turns halves, and its converter reorders the rows
// of each head for that: row 2 i + j of the file's head is row j head_dim / 2 + i.
at::Tensor halves_from_pairs(const at::Tensor& weight, std::int64_t heads) {
  return weight.view({heads, weight.size(0) / heads / 2, 2, -1}).transpose(1, 2).reshape_as(weight);
}

}  // namespace

DecoderConfig read_gguf_config(const GgufFile& file) {
  try {
    DecoderOptions options = GgufConfigReader(file).read();
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
  if (file.text("general.architecture") != "llama") return weight;
  const std::string_view part = split_layer_name(gguf_name).part;
  if (part == "attn_q") return halves_from_pairs(weight, options.num_attention_heads);
  if (part == "attn_k") return halves_from_pairs(weight, options.num_key_value_heads);
  return weight;
}

}  // namespace prefopt::detail
