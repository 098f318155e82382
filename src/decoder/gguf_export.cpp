// SPDX-License-Identifier: Apache-2.0
#include "prefopt/decoder/gguf_export.h"

#include <ATen/TensorOperators.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <system_error>

#include "core/text.h"
#include "data/tokenizer_gguf_writer.h"
#include "decoder/families/family.h"
#include "decoder/gguf_decoder.h"
#include "decoder/gguf_fields.h"
#include "files/gguf_encoding.h"
#include "prefopt/error.h"
#include "prefopt/files/gguf_writer.h"

namespace prefopt {
namespace {

struct FileType {
  std::string_view name;
  std::int64_t number;  // llama.cpp's enum llama_ftype
  std::string_view head;
};

constexpr std::array kFileTypes = std::to_array<FileType>({
    {"F32", 0, "F32"},
    {"F16", 1, "F16"},
    {"BF16", 32, "BF16"},
    {"Q8_0", 7, "Q8_0"},
    {"Q4_0", 2, "Q6_K"},
    {"Q4_K", 14, "Q6_K"},
});

// Types for rows that are not whole blocks of the one wanted.
struct Fallback {
  std::string_view type, next;
};
constexpr std::array kFallbacks = std::to_array<Fallback>(
    {{"Q4_K", "Q5_0"}, {"Q6_K", "Q8_0"}, {"Q4_0", "F16"}, {"Q5_0", "F16"}, {"Q8_0", "F16"}});

const FileType& file_type(std::string_view name, std::string_view where) {
  for (const FileType& known : kFileTypes) {
    if (known.name == name) return known;
  }
  throw ConfigError(
      fmt::format("{}: expected type F32, F16, BF16, Q8_0, Q4_0 or Q4_K, got '{}'", where, name));
}

std::string_view type_for_rows(std::string_view type, std::int64_t row) {
  for (const auto& [wanted, next] : kFallbacks) {
    if (type == wanted && row % detail::find_gguf_encoding(type)->values != 0) type = next;
  }
  return type;
}

std::string_view tensor_type(const FileType& type, std::string_view gguf_name,
                             const at::Tensor& weight, bool tied) {
  if (weight.dim() < 2) return "F32";
  const bool is_head = gguf_name == (tied ? "token_embd.weight" : "output.weight");
  return type_for_rows(is_head ? type.head : type.name, weight.size(-1));
}

std::string_view architecture_of(const DecoderOptions& options, std::string_view where) {
  const detail::Family& family = detail::family_named(options.family, where);
  if (!family.traits.gguf_written.empty()) return family.traits.gguf_written;
  throw ConfigError(fmt::format(
      "{}: expected a family that is written to GGUF files here (llama, mistral, qwen2, "
      "qwen3), got '{}'; export a folder (--out) for llama.cpp's converter",
      where, family.traits.model_type));
}

void write_general(std::string_view architecture, std::string_view kind, const std::string& name,
                   GgufWriter& file) {
  constexpr std::int64_t kQuantizationVersion = 2;  // of ggml
  file.text("general.architecture", architecture);
  file.text("general.type", kind);
  if (!name.empty()) file.text("general.name", name);
  file.integer("general.quantization_version", kQuantizationVersion);
}

void write_options(const DecoderOptions& options, std::string_view architecture, GgufWriter& file) {
  detail::GgufFieldWriter fields(file, architecture);
  fields.integer("block_count", options.num_hidden_layers);
  fields.integer("context_length", options.max_position_embeddings);
  fields.integer("embedding_length", options.hidden_size);
  fields.integer("feed_forward_length", options.intermediate_size);
  fields.integer("vocab_size", options.vocab_size);
  fields.integer("attention.head_count", options.num_attention_heads);
  fields.integer("attention.head_count_kv", options.num_key_value_heads);
  fields.integer("attention.key_length", options.head_dim);
  fields.integer("attention.value_length", options.head_dim);
  fields.real("attention.layer_norm_rms_epsilon", options.rms_norm_eps);
  if (const std::int64_t window = options.sliding_window; window > 0) {
    fields.integer("attention.sliding_window", window);
  }
  fields.integer("rope.dimension_count", options.head_dim);
  fields.real("rope.freq_base", options.rope_theta);
  detail::family_named(options.family, "export_gguf").write_gguf(options, fields);
}

// Ids that the tokenizer does not name.
void write_token(std::string_view key, std::int64_t id, GgufWriter& file) {
  if (id >= 0 && !file.has(key)) file.integer(key, id);
}

void write_weights(const Decoder& model, const FileType& type, std::string_view architecture,
                   std::string_view where, GgufWriter& file) {
  const DecoderOptions& options = model.options();
  if (options.rope_scaling_factor != 1) {
    file.tensor(std::string(detail::kGgufRopeFactors), detail::gguf_rope_factors(options), "F32");
  }
  for (const auto& [name, weight] : model.named_parameters()) {
    const std::string gguf_name = detail::gguf_name(name);
    if (gguf_name.empty()) {
      throw ConfigError(fmt::format("{}: expected weights that GGUF files have names for, got '{}'",
                                    where, name));
    }
    file.tensor(gguf_name, detail::gguf_weight(weight, gguf_name, architecture, options),
                tensor_type(type, gguf_name, weight, options.tie_word_embeddings));
  }
}

// Returns what files keep of `options`, as text, where other values cannot matter.
std::string kept_options(DecoderOptions options) {
  const DecoderOptions defaults;
  options.family = std::string(architecture_of(options, "export_gguf"));
  options.initializer_range = defaults.initializer_range;
  options.bos_token_id = options.eos_token_id = options.pad_token_id = -1;
  if (options.rope_scaling_factor == 1) {
    options.rope_low_freq_factor = defaults.rope_low_freq_factor;
    options.rope_high_freq_factor = defaults.rope_high_freq_factor;
    options.rope_original_max_position_embeddings = defaults.rope_original_max_position_embeddings;
  }
  return fmt::format("{} with a window of {}", options_to_json(options), options.sliding_window);
}

// Reads the file as any other: an option that it has no place for shows, and the file goes.
void check_written(const std::string& path, const DecoderOptions& options) {
  const auto fail = [&](std::string_view got) {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
    throw ConfigError(fmt::format("{}: expected a model that a GGUF file can describe, {}, got {}",
                                  path, kept_options(options), got));
  };
  std::string read;
  try {
    read = kept_options(detail::read_gguf_config(GgufFile::open(path)).options);
  } catch (const CheckpointError& error) {
    fail(fmt::format("a file that is refused: {}", error.what()));
  }
  if (read != kept_options(options)) fail(read);
}

}  // namespace

std::vector<std::int64_t> export_gguf(const Decoder& model, const std::string& path,
                                      const GgufExportOptions& options) {
  const FileType& type = file_type(options.type, path);
  const std::string_view architecture = architecture_of(model.options(), path);
  if (model.adapter()) {
    throw ConfigError(
        fmt::format("{}: expected a model without an adapter, got one with; merge it", path));
  }
  GgufWriter file;
  write_general(architecture, "model", options.name, file);
  file.integer("general.file_type", type.number);
  write_options(model.options(), architecture, file);
  std::vector<std::int64_t> left =
      detail::write_gguf_tokenizer(options.tokenizer, model.vocab_size(), options.end_tokens, file);
  write_token("tokenizer.ggml.bos_token_id", model.options().bos_token_id, file);
  write_token("tokenizer.ggml.padding_token_id", model.options().pad_token_id, file);
  write_weights(model, type, architecture, path, file);
  file.write(path);
  check_written(path, model.options());
  return left;
}

void export_gguf_adapter(const Decoder& model, const std::string& path, const std::string& name,
                         std::string_view type) {
  constexpr std::array kTypes = std::to_array<std::string_view>({"F32", "F16", "BF16"});
  if (!detail::contains(kTypes, type)) {
    throw ConfigError(
        fmt::format("{}: expected type F32, F16 or BF16 of an adapter, got '{}'", path, type));
  }
  if (!model.adapter()) {
    throw ConfigError(fmt::format("{}: expected a model with an adapter, got one without", path));
  }
  const DecoderOptions& options = model.options();
  const std::string_view architecture = architecture_of(options, path);
  GgufWriter file;
  write_general(architecture, "adapter", name, file);
  file.text("adapter.type", "lora");
  std::optional<double> alpha;
  for (const TrainedWeight& weight : model.trained_weights()) {
    const bool is_plain = weight.lora_a.defined() && !weight.magnitude.defined() &&
                          weight.name.starts_with("model.layers.");
    if (!is_plain) {
      throw ConfigError(fmt::format(
          "{}: expected an adapter of A and B on maps of layers, which is what llama.cpp adds, got "
          "one that trains '{}' in another way; merge it",
          path, weight.name));
    }
    const std::string gguf_name = detail::gguf_name(weight.name);
    // llama.cpp scales by alpha / rank, whatever made the adapter, with one alpha for all maps:
    // what another map differs by goes into its B.
    const double own = weight.lora_scale * static_cast<double>(weight.lora_a.size(0));
    if (!alpha) {
      alpha = own;
      file.real("adapter.lora.alpha", own);
    }
    const at::Tensor b = own == *alpha ? weight.lora_b : weight.lora_b * (own / *alpha);
    file.tensor(gguf_name + ".lora_a", weight.lora_a, type);
    file.tensor(gguf_name + ".lora_b", detail::gguf_weight(b, gguf_name, architecture, options),
                type);
  }
  file.write(path);
}

}  // namespace prefopt
