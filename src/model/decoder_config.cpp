// SPDX-License-Identifier: Apache-2.0
#include "model/decoder_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string_view>

#include "core/file.h"
#include "prefopt/error.h"

namespace prefopt {

void DecoderOptions::fields(FieldVisitor& v) {
  const Range size = Range::between(1, detail::kMaxDecoderSize);
  const Range token = Range::between(-1, detail::kMaxDecoderSize);
  v.integer({"vocab_size", "number of token ids"}, vocab_size, size);
  v.integer({"hidden_size", "width of the residual stream"}, hidden_size, size);
  v.integer({"intermediate_size", "width of the feed-forward part"}, intermediate_size, size);
  v.integer({"num_hidden_layers", "number of layers"}, num_hidden_layers, Range::between(1, 4096));
  v.integer({"num_attention_heads", "query heads"}, num_attention_heads, size);
  v.integer({"num_key_value_heads", "key and value heads"}, num_key_value_heads, size);
  v.integer({"head_dim", "width of a head; 0: hidden_size / num_attention_heads"}, head_dim,
            Range::between(0, detail::kMaxDecoderSize));
  v.integer({"max_position_embeddings", "longest sequence the model is meant for"},
            max_position_embeddings, size);
  v.real({"rms_norm_eps", "added to the mean square in RMSNorm"}, rms_norm_eps, Range::above(0));
  v.real({"rope_theta", "base of the rotary frequencies"}, rope_theta, Range::above(0));
  v.flag({"tie_word_embeddings", "the output head is the embedding matrix"}, tie_word_embeddings);
  v.real({"initializer_range", "standard deviation of fresh weights"}, initializer_range,
         Range::at_least(0));
  v.integer({"bos_token_id", "begin token; -1: none"}, bos_token_id, token);
  v.integer({"eos_token_id", "end token; -1: none"}, eos_token_id, token);
  v.integer({"pad_token_id", "padding token; -1: none"}, pad_token_id, token);
}

}  // namespace prefopt

namespace prefopt::detail {
namespace {

// Read below, by name.
constexpr std::array kUnderstood = std::to_array<std::string_view>({
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "tie_word_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sliding_window",
    "layer_types",
});

// Change nothing of what a forward pass gives: notes on origin, generation defaults, output forms,
// and attention_dropout, since preference training runs without dropout (as in TRL).
constexpr std::array kHarmless = std::to_array<std::string_view>({
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "length_penalty",
    "max_length",
    "max_window_layers",
    "min_length",
    "model_name",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token",
    "prefix",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
});

// Fields that would change results: only the value that leaves them as this decoder computes is
// taken. Null means the same.
struct Required {
  std::string_view name;
  Json value;
};

const std::vector<Required>& required_values() {
  static const std::vector<Required> kRequired = {
      {"hidden_act", "silu"},
      {"attention_bias", false},
      {"mlp_bias", false},
      {"pretraining_tp", 1},
      {"rope_interleaved", false},
      {"partial_rotary_factor", 1},
      {"use_sliding_window", false},
      {"add_cross_attention", false},
      {"is_encoder_decoder", false},
      {"is_decoder", false},
      {"tie_encoder_decoder", false},
      {"cross_attention_hidden_size", nullptr},
      {"quantization_config", nullptr},
  };
  return kRequired;
}

template <class Names>
bool contains(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

class ConfigReader {
 public:
  ConfigReader(const Json& json, const std::string& path) : json_(json), path_(path) {
    if (!json.is_object()) fail("an object", json_type_name(json));
  }

  DecoderOptions read() const {
    check_model_type();
    check_names();
    check_required_values();
    DecoderOptions options;
    options.vocab_size = size("vocab_size");
    options.hidden_size = size("hidden_size");
    options.intermediate_size = size("intermediate_size");
    options.num_hidden_layers = size("num_hidden_layers");
    options.num_attention_heads = size("num_attention_heads");
    // Where a field is absent, transformers' default of LlamaConfig holds.
    options.num_key_value_heads = size("num_key_value_heads", options.num_attention_heads);
    options.head_dim = size("head_dim", 0);
    options.max_position_embeddings = size("max_position_embeddings", 2048);
    options.rms_norm_eps = number("rms_norm_eps", 1e-6);
    options.initializer_range = number("initializer_range", 0.02);
    options.tie_word_embeddings = flag("tie_word_embeddings", false);
    options.rope_theta = rope_theta();
    options.bos_token_id = token("bos_token_id");
    options.eos_token_id = token("eos_token_id");
    options.pad_token_id = token("pad_token_id");
    return options;
  }

 private:
  void check_model_type() const {
    const Json* type = find("model_type");
    if (!type || (*type != "llama" && *type != "mistral")) {
      fail(R"(model_type to be "llama" or "mistral")", type ? dump_json(*type) : "none");
    }
    // Mistral's defaults are not Llama's: a window of 4096 and 8 key-value heads.
    if (*type == "mistral" && !json_.contains("sliding_window")) {
      fail("sliding_window to be null, as mistral has a window by default", "none");
    }
    if (*type == "mistral" && !find("num_key_value_heads")) fail("num_key_value_heads", "none");
  }

  void check_names() const {
    for (const auto& item : json_.items()) {
      const auto is_it = [&](const Required& field) { return field.name == item.key(); };
      if (!contains(kUnderstood, item.key()) && !contains(kHarmless, item.key()) &&
          std::none_of(required_values().begin(), required_values().end(), is_it)) {
        fail("fields that this decoder understands", fmt::format("'{}'", item.key()));
      }
    }
  }

  void check_required_values() const {
    for (const auto& [name, value] : required_values()) {
      const Json* given = find(name);
      if (given && *given != value) {
        fail(fmt::format("{} to be {}", name, dump_json(value)), dump_json(*given));
      }
    }
    if (const Json* window = find("sliding_window")) {
      fail("sliding_window to be null", dump_json(*window));
    }
    if (const Json* types = find("layer_types")) {
      const auto is_full = [](const Json& type) { return type == "full_attention"; };
      if (!types->is_array() || !std::all_of(types->begin(), types->end(), is_full)) {
        fail(R"(layer_types to hold "full_attention" only)", dump_json(*types));
      }
    }
  }

  // transformers 5 writes `rope_parameters`; before, `rope_theta` and `rope_scaling`.
  double rope_theta() const {
    std::optional<double> theta;
    if (find("rope_theta")) theta = number("rope_theta", 0);
    for (const char* name : {"rope_scaling", "rope_parameters"}) {
      const Json* group = find(name);
      if (!group) continue;
      if (!group->is_object()) fail(fmt::format("{} to be an object", name), dump_json(*group));
      for (const auto& item : group->items()) {
        const bool plain_type =
            (item.key() == "rope_type" || item.key() == "type") && item.value() == "default";
        const bool whole = item.key() == "partial_rotary_factor" && item.value() == 1;
        if (plain_type || whole) continue;
        if (item.key() != "rope_theta" || !item.value().is_number()) {
          fail(fmt::format("{} of rope_type \"default\"", name), dump_json(*group));
        }
        const auto given = item.value().get<double>();
        if (theta.value_or(given) != given) {
          fail(fmt::format("one rope_theta, {}", *theta), dump_json(item.value()));
        }
        theta = given;
      }
    }
    return theta.value_or(10000);
  }

  std::int64_t token(const char* name) const {
    const Json* given = find(name);
    if (!given) return -1;
    // A model may have several end tokens; generation here ends at the first of them.
    if (given->is_array() && !given->empty()) given = &given->front();
    return whole(name, *given);
  }

  std::int64_t size(const char* name, std::optional<std::int64_t> absent = {}) const {
    const Json* given = find(name);
    if (!given && absent) return *absent;
    if (!given) fail(name, "none");
    const std::int64_t value = whole(name, *given);
    if (value < 1) fail(fmt::format("{} of at least 1", name), dump_json(*given));
    if (value > kMaxDecoderSize) {
      fail(fmt::format("{} of at most {}", name, kMaxDecoderSize), dump_json(*given));
    }
    return value;
  }

  double number(const char* name, double absent) const {
    const Json* given = find(name);
    if (!given) return absent;
    if (!given->is_number()) fail(fmt::format("{} to be a number", name), dump_json(*given));
    return given->get<double>();
  }

  bool flag(const char* name, bool absent) const {
    const Json* given = find(name);
    if (!given) return absent;
    if (!given->is_boolean()) fail(fmt::format("{} to be true or false", name), dump_json(*given));
    return given->get<bool>();
  }

  std::int64_t whole(const char* name, const Json& given) const {
    const bool fits = given.is_number_integer() &&
                      !(given.is_number_unsigned() &&
                        given.get<std::uint64_t>() >
                            static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
    if (!fits) fail(fmt::format("{} to be a whole number", name), dump_json(given));
    return given.get<std::int64_t>();
  }

  // Null is what transformers writes for "not set".
  const Json* find(std::string_view name) const {
    const auto at = json_.find(std::string(name));
    return at == json_.end() || at->is_null() ? nullptr : &*at;
  }

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw CheckpointError(fmt::format("{}: expected {}, got {}", path_, expected, got));
  }

  const Json& json_;
  const std::string& path_;
};

Json token_or_null(std::int64_t id) { return id < 0 ? Json(nullptr) : Json(id); }

std::string_view config_dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return "float64";
    case at::kBFloat16:
      return "bfloat16";
    case at::kHalf:
      return "float16";
    default:
      return "float32";
  }
}

}  // namespace

DecoderOptions checked_decoder_options(DecoderOptions options, std::string_view where) {
  options = checked(options, where);
  const auto expect_multiple = [&](std::string_view name, std::int64_t value, std::string_view of,
                                   std::int64_t divisor) {
    if (value % divisor != 0) {
      throw ConfigError(fmt::format("{}: expected {} to be a multiple of {}, got {} and {}", where,
                                    name, of, value, divisor));
    }
  };
  expect_multiple("hidden_size", options.hidden_size, "num_attention_heads",
                  options.num_attention_heads);
  expect_multiple("num_attention_heads", options.num_attention_heads, "num_key_value_heads",
                  options.num_key_value_heads);
  if (options.head_dim == 0) options.head_dim = options.hidden_size / options.num_attention_heads;
  if (options.head_dim % 2 != 0) {
    throw ConfigError(
        fmt::format("{}: expected an even head_dim, got {}; rotary positions turn "
                    "pairs of numbers",
                    where, options.head_dim));
  }
  return options;
}

DecoderConfig read_decoder_config(const std::string& path) {
  DecoderConfig config;
  config.json = parse_json<CheckpointError>(read_file<CheckpointError>(path), path);
  try {
    config.options = checked_decoder_options(ConfigReader(config.json, path).read(), path);
  } catch (const ConfigError& error) {
    throw CheckpointError(error.what());
  }
  return config;
}

Json make_decoder_config(const DecoderOptions& options) {
  return {
      {"architectures", Json::array({"LlamaForCausalLM"})},
      {"attention_bias", false},
      {"attention_dropout", 0.0},
      {"bos_token_id", token_or_null(options.bos_token_id)},
      {"eos_token_id", token_or_null(options.eos_token_id)},
      {"head_dim", options.head_dim},
      {"hidden_act", "silu"},
      {"hidden_size", options.hidden_size},
      {"initializer_range", options.initializer_range},
      {"intermediate_size", options.intermediate_size},
      {"max_position_embeddings", options.max_position_embeddings},
      {"mlp_bias", false},
      {"model_type", "llama"},
      {"num_attention_heads", options.num_attention_heads},
      {"num_hidden_layers", options.num_hidden_layers},
      {"num_key_value_heads", options.num_key_value_heads},
      {"pad_token_id", token_or_null(options.pad_token_id)},
      {"pretraining_tp", 1},
      {"rms_norm_eps", options.rms_norm_eps},
      // Both forms: transformers before version 5 knows the second one only.
      {"rope_parameters", {{"rope_theta", options.rope_theta}, {"rope_type", "default"}}},
      {"rope_theta", options.rope_theta},
      {"tie_word_embeddings", options.tie_word_embeddings},
      {"torch_dtype", "float32"},
      {"use_cache", true},
      {"vocab_size", options.vocab_size},
  };
}

void set_config_dtype(Json& config, at::ScalarType dtype) {
  for (const char* name : {"dtype", "torch_dtype"}) {
    const auto at = config.find(name);
    if (at != config.end() && !at->is_null()) *at = config_dtype_name(dtype);
  }
}

}  // namespace prefopt::detail
