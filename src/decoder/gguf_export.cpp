// SPDX-License-Identifier: Apache-2.0
#include "prefopt/decoder/gguf_export.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <optional>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "core/text.h"
#include "data/tokenizer_gguf_writer.h"
#include "decoder/families/family.h"
#include "decoder/gguf_decoder.h"
#include "decoder/gguf_fields.h"
#include "decoder/spec_difference.h"
#include "files/gguf_encoding.h"
#include "prefopt/error.h"
#include "prefopt/files/gguf_writer.h"

namespace prefopt {
namespace {

using detail::ModelSpec;
using detail::RopeSpec;
using detail::RopeType;

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

// The type of a tensor whose rows are whole blocks. Routers keep float32, as llama.cpp's own files.
std::string_view wanted_type(const FileType& type, std::string_view gguf_name,
                             const at::Tensor& weight, bool tied) {
  if (weight.dim() < 2 || gguf_name.ends_with("ffn_gate_inp.weight")) return "F32";
  const bool is_head = gguf_name == (tied ? "token_embd.weight" : "output.weight");
  return is_head ? type.head : type.name;
}

std::string_view architecture_of(const DecoderOptions& options, std::string_view where) {
  const detail::Family& family = detail::family_named(options.family, where);
  if (!family.traits.gguf_written.empty()) return family.traits.gguf_written;
  std::vector<std::string_view> names;
  for (const detail::Family* known : detail::families()) {
    if (!known->traits.gguf_written.empty()) names.push_back(known->traits.model_type);
  }
  throw ConfigError(fmt::format(
      "{}: expected a family that is written to GGUF files here ({}), got '{}'; export a "
      "folder (--out) for llama.cpp's converter",
      where, fmt::join(names, ", "), family.traits.model_type));
}

/// The parts, of those that models here may have, that llama.cpp (build 11549) loads in files of an
/// architecture.
struct Loadable {
  std::string_view architecture;
  bool query_bias = true, output_bias = false, mlp_bias = false;
  bool own_head = true, shared_head = true;
  bool llama3_rope = false;
  bool any_head_dim = true;  ///< other than hidden_size / num_attention_heads
};

constexpr std::array kLoadable = std::to_array<Loadable>({
    {.architecture = "llama", .output_bias = true, .mlp_bias = true, .llama3_rope = true},
    {.architecture = "granite", .output_bias = true, .mlp_bias = true, .llama3_rope = true},
    {.architecture = "qwen2", .any_head_dim = false},
    {.architecture = "qwen3"},
    {.architecture = "qwen3moe"},
    {.architecture = "smollm3"},
    {.architecture = "phi3", .any_head_dim = false},
    {.architecture = "gemma2", .own_head = false},
    {.architecture = "gemma3"},
    {.architecture = "olmo2", .query_bias = false, .shared_head = false, .any_head_dim = false},
});

// llama.cpp refuses files that lack a tensor, have one too many or one of another shape.
void check_loadable(const DecoderOptions& options, std::string_view architecture,
                    std::string_view where) {
  const auto known =
      std::find_if(kLoadable.begin(), kLoadable.end(),
                   [&](const Loadable& loadable) { return loadable.architecture == architecture; });
  if (known == kLoadable.end()) return;
  const ModelSpec spec = detail::family_named(options.family, where).spec(options, where);
  const detail::LayerSpec& layer = spec.layers.front();
  const auto check = [&](bool is_there, bool is_loaded, std::string_view what) {
    if (!is_there || is_loaded) return;
    throw ConfigError(
        fmt::format("{}: expected a model that llama.cpp loads as '{}', got one with {}", where,
                    architecture, what));
  };
  check(layer.attention_bias, known->query_bias, "biases of queries, keys and values");
  check(layer.attention_output_bias, known->output_bias, "a bias of the output projection");
  check(layer.mlp_bias, known->mlp_bias, "mlp_bias");
  check(!spec.tied_head, known->own_head, "an output head that is not the embedding");
  check(spec.tied_head, known->shared_head, "an output head that is the embedding");
  check(options.rope_scaling_factor != 1, known->llama3_rope, "Llama 3's rotary scaling");
  check(options.head_dim * options.num_attention_heads != options.hidden_size, known->any_head_dim,
        "heads that are not hidden_size / num_attention_heads wide");
}

void write_general(std::string_view architecture, std::string_view kind, const std::string& name,
                   GgufWriter& file) {
  constexpr std::int64_t kQuantizationVersion = 2;  // of ggml
  file.text("general.architecture", architecture);
  file.text("general.type", kind);
  if (!name.empty()) file.text("general.name", name);
  file.integer("general.quantization_version", kQuantizationVersion);
}

void write_sizes(const DecoderOptions& options, detail::GgufFieldWriter& fields) {
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
}

void write_rope(const RopeSpec& rope, std::int64_t head_dim, detail::GgufFieldWriter& fields) {
  fields.integer("rope.dimension_count", rope.turned(head_dim));
  fields.real("rope.freq_base", rope.theta);
  const bool is_yarn = rope.type == RopeType::kYarn;
  if (is_yarn || rope.type == RopeType::kLinear) {
    fields.text("rope.scaling.type", is_yarn ? "yarn" : "linear");
    fields.real("rope.scaling.factor", rope.factor);
  }
  if (is_yarn || rope.type == RopeType::kLongrope) {
    fields.integer("rope.scaling.original_context_length", rope.context);
  }
}

void write_options(const DecoderOptions& options, std::string_view architecture, GgufWriter& file) {
  detail::GgufFieldWriter fields(file, architecture);
  const detail::Family& family = detail::family_named(options.family, "export_gguf");
  const ModelSpec spec = family.spec(options, "export_gguf");
  write_sizes(options, fields);
  write_rope(spec.ropes.front(), options.head_dim, fields);
  family.write_gguf(spec, fields);
}

// Ids that the tokenizer does not name.
void write_token(std::string_view key, std::int64_t id, GgufWriter& file) {
  if (id >= 0 && !file.has(key)) file.integer(key, id);
}

void write_rope_factors(const DecoderOptions& options, GgufWriter& file) {
  if (options.rope_scaling_factor != 1) {
    file.tensor(std::string(detail::kGgufRopeFactors), detail::gguf_rope_factors(options), "F32");
  }
  const RopeSpec rope = detail::family_named(options.family, "export_gguf")
                            .spec(options, "export_gguf")
                            .ropes.front();
  if (rope.type != RopeType::kLongrope) return;
  for (const auto& [name, factors] : {std::pair(detail::kGgufLongFactors, rope.long_factors),
                                      std::pair(detail::kGgufShortFactors, rope.short_factors)}) {
    file.tensor(std::string(name), at::tensor(factors, at::kDouble), "F32");
  }
}

/// A tensor of the file and the model's weights that it holds: one, or those of all experts.
struct NamedWeights {
  std::string name;
  std::vector<at::Tensor> parts;
};

std::vector<NamedWeights> weights_of(const Decoder& model, std::string_view architecture,
                                     std::string_view where) {
  const DecoderOptions& options = model.options();
  std::vector<NamedWeights> weights;
  std::unordered_map<std::string, std::size_t> places;
  for (const auto& [name, weight] : model.named_parameters()) {
    const std::string gguf_name = detail::gguf_name(name, options);
    if (gguf_name.empty()) {
      throw ConfigError(fmt::format("{}: expected weights that GGUF files have names for, got '{}'",
                                    where, name));
    }
    const auto [place, is_new] = places.emplace(gguf_name, weights.size());
    if (is_new) weights.push_back({gguf_name, {}});
    weights[place->second].parts.push_back(
        detail::gguf_weight(weight, gguf_name, architecture, options));
  }
  return weights;
}

/// Tensors that are kept in another type than the file's, by the reason.
class OtherTypes {
 public:
  void add(std::string_view name, std::string_view wanted, std::string_view got, std::int64_t row) {
    if (wanted == got) return;
    std::vector<std::string>& names =
        names_[fmt::format("{} in place of {}, whose blocks of {} do not fit rows of {}", got,
                           wanted, detail::find_gguf_encoding(wanted)->values, row)];
    std::string general = without_layer(name);
    if (!detail::contains(names, general)) names.push_back(std::move(general));
  }

  std::vector<std::string> remarks() const {
    std::vector<std::string> remarks;
    for (const auto& [reason, names] : names_) {
      remarks.push_back(fmt::format("{}: {}", fmt::join(names, ", "), reason));
    }
    return remarks;
  }

 private:
  static std::string without_layer(std::string_view name) {
    constexpr std::string_view kLayer = "blk.";
    if (!name.starts_with(kLayer)) return std::string(name);
    return fmt::format("blk.*{}", name.substr(name.find('.', kLayer.size())));
  }

  std::map<std::string, std::vector<std::string>> names_;
};

// Returns remarks on types.
std::vector<std::string> write_weights(const Decoder& model, const FileType& type,
                                       std::string_view architecture, std::string_view where,
                                       GgufWriter& file) {
  OtherTypes others;
  for (NamedWeights& weight : weights_of(model, architecture, where)) {
    const at::Tensor& first = weight.parts.front();
    const std::int64_t row = first.size(-1);
    const std::string_view wanted =
        wanted_type(type, weight.name, first, model.options().tie_word_embeddings);
    const std::string_view got = type_for_rows(wanted, row);
    others.add(weight.name, wanted, got, row);
    if (detail::holds_experts(weight.name)) {
      file.stack(weight.name, std::move(weight.parts), got);
    } else {
      file.tensor(weight.name, first, got);
    }
  }
  return others.remarks();
}

// Returns the window that llama.cpp does not compute, 0: none.
std::int64_t ignored_window(const DecoderOptions& options) {
  return detail::family_named(options.family, "export_gguf").traits.gguf_slides
             ? 0
             : options.sliding_window;
}

// Reads the file as any other: an option that it has no place for shows, and the file goes.
void check_written(const std::string& path, const DecoderOptions& options) {
  const auto fail = [&](std::string_view got) {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
    throw ConfigError(
        fmt::format("{}: expected a model that a GGUF file can describe, got {}", path, got));
  };
  DecoderOptions read;
  try {
    read = detail::read_gguf_config(GgufFile::open(path)).options;
  } catch (const CheckpointError& error) {
    fail(fmt::format("one whose file is refused: {}", error.what()));
  }
  const std::vector<std::string> differences =
      detail::spec_differences(options, read, "in the file");
  if (!differences.empty()) fail(fmt::format("{}", fmt::join(differences, ", ")));
}

}  // namespace

GgufExportRemarks export_gguf(const Decoder& model, const std::string& path,
                              const GgufExportOptions& options) {
  const FileType& type = file_type(options.type, path);
  const std::string_view architecture = architecture_of(model.options(), path);
  if (model.adapter()) {
    throw ConfigError(
        fmt::format("{}: expected a model without an adapter, got one with; merge it", path));
  }
  check_loadable(model.options(), architecture, path);
  GgufWriter file;
  write_general(architecture, "model", options.name, file);
  file.integer("general.file_type", type.number);
  write_options(model.options(), architecture, file);
  GgufExportRemarks remarks;
  remarks.left_end_tokens =
      detail::write_gguf_tokenizer(options.tokenizer, model.vocab_size(), options.end_tokens, file);
  write_token("tokenizer.ggml.bos_token_id", model.options().bos_token_id, file);
  write_token("tokenizer.ggml.padding_token_id", model.options().pad_token_id, file);
  write_rope_factors(model.options(), file);
  remarks.other_types = write_weights(model, type, architecture, path, file);
  file.write(path);
  check_written(path, model.options());
  remarks.ignored_window = ignored_window(model.options());
  return remarks;
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
    const std::string gguf_name = detail::gguf_name(weight.name, options);
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
