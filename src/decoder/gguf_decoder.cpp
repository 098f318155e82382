// SPDX-License-Identifier: Apache-2.0
#include "decoder/gguf_decoder.h"

#include <ATen/ops/arange.h>
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
#include "files/gguf_encoding.h"
#include "kernels/block_tensor.h"
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
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "pooling_type",
});

// Notes on how the weights were made.
constexpr std::array kGgufHarmless = std::to_array<std::string_view>({
    "rope.scaling.finetuned", "tensor_data_layout",
    "classifier.output_labels",  // names; the score head says how many
});

// Only the value that leaves results as this decoder computes them is taken.
std::vector<RequiredValue> gguf_required_values() {
  return {{"attention.causal", true},
          {"expert_count", 0},
          {"expert_used_count", 0},
          {"rope.scale_linear", 1.0},
          {"use_parallel_residual", false}};
}

KnownFields known_gguf_fields(const Family& family) {
  KnownFields known{.understood = family.gguf_understood(),
                    .harmless = kGgufHarmless,
                    .required = gguf_required_values()};
  std::erase_if(known.required,
                [&](const RequiredValue& field) { return contains(known.understood, field.name); });
  for (RequiredValue& field : family.gguf_required()) known.required.push_back(std::move(field));
  known.understood.insert(known.understood.end(), kGgufUnderstood.begin(), kGgufUnderstood.end());
  return known;
}

constexpr std::array kLayerParts = std::to_array<GgufPart>({
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"attn_qkv", "self_attn.qkv_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"ffn_gate_inp", "mlp.gate"},
    {"post_ffw_norm", "post_feedforward_layernorm"},
    // Behind Llama's, by which files of this name are written.
    {"post_attention_norm", "post_attention_layernorm"},
});

// Each tensor holds a matrix of every expert.
constexpr std::array kExpertParts = std::to_array<GgufPart>({
    {"ffn_gate_exps", "gate_proj"},
    {"ffn_up_exps", "up_proj"},
    {"ffn_down_exps", "down_proj"},
});

constexpr std::array kModelParts = std::to_array<GgufPart>({
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
    {kGgufScore, kScoreWeight},
});

constexpr std::string_view kExperts = "mlp.experts.";

// Hugging Face's name of a part that the family's files have; empty for an unknown one.
std::string_view part_from_gguf(const Family& family, std::string_view gguf) {
  for (const GgufPart& known : family.gguf_parts()) {
    if (known.gguf == gguf) return known.hugging_face;
  }
  for (const GgufPart& known : kLayerParts) {
    if (known.gguf == gguf) return known.hugging_face;
  }
  return {};
}

// The name that is read back as `part`.
std::string_view gguf_from_part(const Family& family, std::string_view part) {
  for (const GgufPart& known : family.gguf_parts()) {
    if (known.hugging_face == part) return known.gguf;
  }
  for (const GgufPart& known : kLayerParts) {
    const bool is_it = known.hugging_face == part;
    if (is_it && part_from_gguf(family, known.gguf) == part) return known.gguf;
  }
  const auto matrix_at = part.rfind('.');
  if (!part.starts_with(kExperts) || matrix_at < kExperts.size()) return {};
  for (const GgufPart& known : kExpertParts) {
    if (known.hugging_face == part.substr(matrix_at + 1)) return known.gguf;
  }
  return {};
}

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
  // Mixtral's files are Llama's, with experts.
  const bool has_experts = fields.architecture() == "llama" && fields.has("expert_count") &&
                           fields.integer("expert_count") > 0;
  return has_experts ? family_named("mixtral", file.path()) : *family;
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

// A score head reads the last token's hidden state; without one, hidden states are not pooled.
void check_gguf_pooling(const GgufFields& fields) {
  constexpr std::string_view kName = "pooling_type";
  constexpr std::int64_t kNone = 0, kRank = 4;  // llama.cpp's enum llama_pooling_type
  if (!fields.has(kName)) return;
  const bool has_score = fields.file().find_tensor(kGgufScore) != nullptr;
  const std::int64_t expected = has_score ? kRank : kNone;
  if (fields.integer(kName) == expected) return;
  fields.fail(fmt::format("{} {} {} a tensor '{}'", fields.key(kName), expected,
                          has_score ? "with" : "without", kGgufScore),
              fmt::format("{}", fields.integer(kName)));
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

void check_gguf_head_dim(const GgufFields& fields, std::string_view name, std::int64_t head_dim) {
  if (!fields.has(name) || fields.integer(name) == head_dim) return;
  fields.fail(fmt::format("{} to be the width of a head, {}", fields.key(name), head_dim),
              fmt::format("{}", fields.integer(name)));
}

// Returns the share of a head whose whole part is `turned` numbers.
double share_of(std::int64_t turned, std::int64_t head_dim) {
  const double share = static_cast<double>(turned) / static_cast<double>(head_dim);
  const bool is_exact = RopeSpec{.partial = share}.turned(head_dim) == turned;
  return is_exact ? share : (static_cast<double>(turned) + 0.5) / static_cast<double>(head_dim);
}

std::vector<double> gguf_numbers(const GgufFile& file, std::string_view name) {
  const at::Tensor values = file.tensor(std::string(name), at::kDouble);
  const auto* first = values.const_data_ptr<double>();
  std::vector<double> numbers(first, first + values.numel());
  for (double& number : numbers) number = shortest(number);
  return numbers;
}

void read_gguf_longrope(const GgufFields& fields, RopeSpec& rope) {
  for (const std::string_view name : {kGgufLongFactors, kGgufShortFactors}) {
    if (!fields.file().find_tensor(name)) fields.fail(fmt::format("tensor '{}'", name), "none");
  }
  rope.type = RopeType::kLongrope;
  rope.long_factors = gguf_numbers(fields.file(), kGgufLongFactors);
  rope.short_factors = gguf_numbers(fields.file(), kGgufShortFactors);
  rope.attention_factor =
      fields.has("rope.scaling.attn_factor") ? fields.real("rope.scaling.attn_factor") : 1;
}

// Linear and YaRN scaling, by which transformers and llama.cpp mean the same, and LongRoPE.
RopeSpec read_gguf_scaling(const GgufFields& fields, const DecoderOptions& options) {
  RopeSpec rope{.theta = options.rope_theta};
  rope.context = fields.has("rope.scaling.original_context_length")
                     ? fields.integer("rope.scaling.original_context_length")
                     : options.max_position_embeddings;
  if (fields.file().find_tensor(kGgufLongFactors)) {
    read_gguf_longrope(fields, rope);
    return rope;
  }
  const std::string type_name = fields.key("rope.scaling.type");
  const bool has_type = fields.has("rope.scaling.type");
  // llama.cpp takes a factor alone for a linear one.
  const std::string type = has_type ? fields.file().text(type_name) : "linear";
  if (type == "none") return RopeSpec{.theta = options.rope_theta};
  if (type != "linear" && type != "yarn") {
    fields.fail(type_name + " to be 'none', 'linear' or 'yarn'", "'" + type + "'");
  }
  rope.factor = fields.has("rope.scaling.factor") ? fields.real("rope.scaling.factor") : 1;
  if (rope.factor == 1) return RopeSpec{.theta = options.rope_theta};
  rope.type = type == "linear" ? RopeType::kLinear : RopeType::kYarn;
  if (rope.type == RopeType::kYarn) rope.attention_factor = 0.1 * std::log(rope.factor) + 1;
  return rope;
}

void read_gguf_rope(const GgufFields& fields, const Family& family, DecoderOptions& options) {
  constexpr std::string_view kTurned = "rope.dimension_count";
  check_gguf_head_dim(fields, "attention.value_length", options.head_dim);
  if (!family.traits.has_partial_rotary) check_gguf_head_dim(fields, kTurned, options.head_dim);
  RopeSpec rope = read_gguf_scaling(fields, options);
  if (fields.has(kTurned)) rope.partial = share_of(fields.integer(kTurned), options.head_dim);
  if (family.traits.sliding_rope_theta > 0) {
    const double theta = fields.has("rope.freq_base_swa") ? fields.real("rope.freq_base_swa")
                                                          : family.traits.sliding_rope_theta;
    set_rope_pair(options, {.full = rope, .sliding = {.theta = theta}});
  } else {
    set_rope(options, rope);
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
  // The fields below have an entry for each layer.
  options = checked(std::move(options), file.path());
  read_gguf_parts(file, options);
  check_gguf_pooling(fields);
  read_gguf_window(fields, options);
  family.read_gguf(fields, options);
  read_gguf_tokens(file, options);
  options = checked_decoder_options(options, file.path());
  read_gguf_rope(fields, family, options);
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

bool adds_one(const Family* family, std::string_view gguf_name) {
  return family && family->traits.gguf_norms_add_one && gguf_name.ends_with("norm.weight");
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

std::vector<std::string> hugging_face_names(std::string_view gguf_name,
                                            const DecoderOptions& options) {
  for (const GgufPart& known : kModelParts) {
    if (known.gguf == gguf_name) return {std::string(known.hugging_face)};
  }
  const LayerTensor tensor = split_layer_name(gguf_name);
  const auto name = [&](std::string_view part) {
    return fmt::format("model.layers.{}.{}.{}", tensor.layer, part, tensor.suffix);
  };
  const Family& family = family_named(options.family, "gguf");
  if (const std::string_view part = part_from_gguf(family, tensor.part); !part.empty()) {
    return {name(part)};
  }
  std::vector<std::string> names;
  for (const GgufPart& known : kExpertParts) {
    if (known.gguf != tensor.part) continue;
    for (std::int64_t e = 0; e < experts_of(family.spec(options, "gguf")).count; ++e) {
      names.push_back(name(fmt::format("{}{}.{}", kExperts, e, known.hugging_face)));
    }
  }
  return names;
}

at::Tensor read_gguf_weight(const GgufFile& file, const std::string& gguf_name,
                            const DecoderOptions& options, at::ScalarType dtype) {
  at::Tensor weight = file.tensor(gguf_name, dtype);
  const Family* family = find_gguf_family(file.text("general.architecture"));
  if (adds_one(family, gguf_name)) return weight - 1;
  const std::int64_t heads = reordered_heads(family, gguf_name, options);
  return heads > 0 ? halves_from_pairs(weight, heads) : weight;
}

at::Tensor read_gguf_blocks(const GgufFile& file, const std::string& gguf_name,
                            const DecoderOptions& options) {
  const GgufTensor& tensor = *file.find_tensor(gguf_name);
  const GgufEncoding& encoding = *find_gguf_encoding(tensor.type);
  // The router is small, and read by LibTorch's operators.
  const bool is_router = split_layer_name(gguf_name).part == "ffn_gate_inp";
  if (encoding.decode == nullptr || tensor.shape.size() != 2 || is_router) return {};
  kernels::StoredBlocks blocks{.encoding = encoding.name,
                               .matrix = {.columns = tensor.shape[1],
                                          .values = encoding.values,
                                          .bytes = encoding.bytes,
                                          .decode = encoding.decode},
                               .rows = tensor.shape[0],
                               .bytes = file.bytes(gguf_name)};
  blocks.matrix.data = blocks.bytes.const_data_ptr<std::uint8_t>();
  const Family* family = find_gguf_family(file.text("general.architecture"));
  if (const std::int64_t heads = reordered_heads(family, gguf_name, options); heads > 0) {
    const at::Tensor places = halves_from_pairs(at::arange(blocks.rows).unsqueeze(1), heads);
    const auto* place = places.const_data_ptr<std::int64_t>();
    blocks.places.assign(place, place + blocks.rows);
  }
  return kernels::make_block_tensor(std::move(blocks));
}

std::string gguf_name(std::string_view hugging_face_name, const DecoderOptions& options) {
  for (const GgufPart& known : kModelParts) {
    if (known.hugging_face == hugging_face_name) return std::string(known.gguf);
  }
  constexpr std::string_view kPrefix = "model.layers.";
  if (!hugging_face_name.starts_with(kPrefix)) return "";
  const std::string_view name = hugging_face_name.substr(kPrefix.size());
  const auto part_at = name.find('.');
  const auto suffix_at = name.rfind('.');
  if (part_at >= suffix_at) return "";
  const std::string_view part = gguf_from_part(family_named(options.family, "gguf"),
                                               name.substr(part_at + 1, suffix_at - part_at - 1));
  if (part.empty()) return "";
  return fmt::format("blk.{}.{}{}", name.substr(0, part_at), part, name.substr(suffix_at));
}

bool holds_experts(std::string_view gguf_name) {
  const std::string_view part = split_layer_name(gguf_name).part;
  return std::any_of(kExpertParts.begin(), kExpertParts.end(),
                     [&](const GgufPart& known) { return known.gguf == part; });
}

at::Tensor gguf_weight(const at::Tensor& weight, std::string_view gguf_name,
                       std::string_view architecture, const DecoderOptions& options) {
  const Family* family = find_gguf_family(architecture);
  if (adds_one(family, gguf_name)) return weight.to(at::kDouble) + 1;
  const std::int64_t heads = reordered_heads(family, gguf_name, options);
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
