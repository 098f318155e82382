// SPDX-License-Identifier: Apache-2.0
#include "decoder/decoder_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>
#include <optional>
#include <string_view>
#include <system_error>

#include "core/file.h"
#include "core/text.h"
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
  v.real({"rope_scaling_factor", "Llama 3's stretch of slow rotary frequencies; 1: none"},
         rope_scaling_factor, Range::at_least(1));
  v.real({"rope_low_freq_factor", "turns of the original context below which all is stretched"},
         rope_low_freq_factor, Range::above(0));
  v.real({"rope_high_freq_factor", "turns of the original context above which nothing is"},
         rope_high_freq_factor, Range::above(0));
  v.integer({"rope_original_max_position_embeddings", "context before the stretch"},
            rope_original_max_position_embeddings, size);
  v.flag({"attention_bias", "query, key and value projections have a bias"}, attention_bias);
  v.flag({"attention_output_bias", "the output projection has a bias"}, attention_output_bias);
  v.flag({"qk_norm", "RMSNorm of each query and key head"}, qk_norm);
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

// What the model types of transformers differ in.
struct Family {
  std::string_view model_type;
  std::string_view architecture;
  /// Of query, key and value without being asked; a field `attention_bias` is about the output
  /// projection, too.
  bool fixed_bias;
  bool has_bias_field;
  bool qk_norm;
  /// `sliding_window` is read only where `use_sliding_window` is true.
  bool window_is_optional;
};

constexpr Family kLlama{"llama", "LlamaForCausalLM", false, true, false, false};
constexpr Family kMistral{"mistral", "MistralForCausalLM", false, false, false, false};
constexpr Family kQwen2{"qwen2", "Qwen2ForCausalLM", true, false, false, true};
constexpr Family kQwen3{"qwen3", "Qwen3ForCausalLM", false, true, true, true};

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
    "attention_bias",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
});

// Change nothing of what a forward pass gives: notes on origin, generation defaults, output forms,
// and dropout, since preference training runs without it (as in TRL).
constexpr std::array kHarmless = std::to_array<std::string_view>({
    "_attn_implementation_autoset",
    "_commit_hash",
    "_model_name_or_path",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "attn_pdrop",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "embedding_dropout",
    "encoder_no_repeat_ngram_size",
    "eos_token",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "hidden_dropout_prob",
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
    "resid_pdrop",
    "residual_dropout",
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
      {"mlp_bias", false},
      {"pretraining_tp", 1},
      {"rope_interleaved", false},
      {"partial_rotary_factor", 1},
      {"add_cross_attention", false},
      {"is_encoder_decoder", false},
      {"is_decoder", false},
      {"tie_encoder_decoder", false},
      {"cross_attention_hidden_size", nullptr},
      {"quantization_config", nullptr},
      {"use_mrope", false},
      // Factors and counts of related families, at the value that changes nothing.
      {"embedding_multiplier", 1},
      {"residual_multiplier", 1},
      {"logits_scaling", 1},
      {"logit_scale", 1},
      {"num_experts", 0},
      {"num_local_experts", 0},
      {"num_experts_per_tok", 0},
      // "No" to these is no neutral answer.
      {"is_causal", true},
      {"causal", true},
      {"use_rope", true},
      {"use_rms_norm", true},
      {"use_causal_mask", true},
      {"scale_attn_weights", true},
      {"normalize_attention_scores", true},
      {"add_final_layer_norm", true},
  };
  return kRequired;
}

// One id or a list of at least one, each read by `read`.
template <class Read>
std::vector<std::int64_t> token_list(const Json& given, const Read& read) {
  std::vector<std::int64_t> ids;
  constexpr std::size_t kMost = 1024;
  if (!given.is_array() || given.empty() || given.size() > kMost) return {read(given)};
  for (const Json& id : given) {
    const std::int64_t value = read(id);
    if (std::find(ids.begin(), ids.end(), value) == ids.end()) ids.push_back(value);
  }
  return ids;
}

class ConfigReader {
 public:
  ConfigReader(const Json& json, const std::string& path) : json_(json), path_(path) {
    if (!json.is_object()) fail("an object", json_type_name(json));
  }

  DecoderOptions read() const {
    const Family& family = read_family();
    check_names();
    check_required_values();
    DecoderOptions options;
    options.vocab_size = size("vocab_size");
    options.hidden_size = size("hidden_size");
    options.intermediate_size = size("intermediate_size");
    options.num_hidden_layers = size("num_hidden_layers");
    options.num_attention_heads = size("num_attention_heads");
    // Where a field is absent, transformers' default holds.
    options.num_key_value_heads = size("num_key_value_heads", options.num_attention_heads);
    options.head_dim = size("head_dim", family.qk_norm ? 128 : 0);
    options.max_position_embeddings = size("max_position_embeddings", 2048);
    options.rms_norm_eps = number("rms_norm_eps", 1e-6);
    options.initializer_range = number("initializer_range", 0.02);
    options.tie_word_embeddings = flag("tie_word_embeddings", false);
    options.sliding_window = read_window(family);
    read_attention(family, options);
    read_rope(options);
    options.bos_token_id = token("bos_token_id");
    options.pad_token_id = token("pad_token_id");
    options.extra_eos_token_ids = tokens("eos_token_id");
    if (!options.extra_eos_token_ids.empty()) {
      options.eos_token_id = options.extra_eos_token_ids.front();
      options.extra_eos_token_ids.erase(options.extra_eos_token_ids.begin());
    }
    return options;
  }

 private:
  const Family& read_family() const {
    const Json* type = find("model_type");
    for (const Family* family : {&kLlama, &kMistral, &kQwen2, &kQwen3}) {
      if (!type || *type != family->model_type) continue;
      // Only Llama has as many key-value heads as heads by default.
      if (family != &kLlama && !find("num_key_value_heads")) fail("num_key_value_heads", "none");
      return *family;
    }
    fail(R"(model_type to be "llama", "mistral", "qwen2" or "qwen3")",
         type ? shown_json(*type) : "none");
  }

  void check_names() const {
    for (const auto& item : json_.items()) {
      const auto is_it = [&](const Required& field) { return field.name == item.key(); };
      if (!contains(kUnderstood, item.key()) && !contains(kHarmless, item.key()) &&
          std::none_of(required_values().begin(), required_values().end(), is_it) &&
          !says_nothing(item.value())) {
        fail("fields that this decoder understands",
             fmt::format("'{}': {}", item.key(), shown_json(item.value())));
      }
    }
  }

  void check_required_values() const {
    for (const auto& [name, value] : required_values()) {
      const Json* given = find(name);
      if (given && *given != value) {
        fail(fmt::format("{} to be {}", name, shown_json(value)), shown_json(*given));
      }
    }
  }

  // 0 where every layer sees all. A window of some layers is taken for one of all: no sequence may
  // be longer, and up to there both are the same.
  std::int64_t read_window(const Family& family) const {
    constexpr std::int64_t kMistralDefault = 4096;
    bool windowed = !family.window_is_optional || flag("use_sliding_window", false);
    if (const Json* types = find("layer_types")) {
      const auto is = [](std::string_view name) {
        return [name](const Json& type) { return type == name; };
      };
      const auto is_known = [](const Json& type) {
        return type == "full_attention" || type == "sliding_attention";
      };
      if (!types->is_array() || !std::all_of(types->begin(), types->end(), is_known)) {
        fail(R"(layer_types to hold "full_attention" and "sliding_attention" only)",
             shown_json(*types));
      }
      const bool slides = std::any_of(types->begin(), types->end(), is("sliding_attention"));
      if (slides && !find("sliding_window")) {
        fail("sliding_window with layer_types of sliding_attention", "none");
      }
      windowed = windowed || slides;
    }
    const bool is_set = json_.contains("sliding_window");
    if (!windowed) return 0;
    if (!is_set && &family == &kMistral) return kMistralDefault;
    return find("sliding_window") ? size("sliding_window") : 0;
  }

  void read_attention(const Family& family, DecoderOptions& options) const {
    options.qk_norm = family.qk_norm;
    options.attention_bias = flag("attention_bias", family.fixed_bias);
    options.attention_output_bias = family.has_bias_field && options.attention_bias;
    if (!family.has_bias_field && options.attention_bias != family.fixed_bias) {
      fail(fmt::format("attention_bias to be {} in {}", family.fixed_bias, family.model_type),
           shown_json(*find("attention_bias")));
    }
  }

  // transformers 5 writes `rope_parameters`; before, `rope_theta` and `rope_scaling`.
  void read_rope(DecoderOptions& options) const {
    std::optional<double> theta;
    if (find("rope_theta")) theta = number("rope_theta", 0);
    std::optional<RopeScaling> scaling;
    for (const char* name : {"rope_scaling", "rope_parameters"}) {
      const Json* group = find(name);
      if (!group) continue;
      if (!group->is_object()) fail(fmt::format("{} to be an object", name), shown_json(*group));
      const RopeScaling given = read_rope_scaling(name, *group);
      if (scaling.value_or(given) != given) {
        fail("rope_parameters that agree with rope_scaling", shown_json(*group));
      }
      scaling = given;
      if (const auto base = group->find("rope_theta"); base != group->end()) {
        if (theta.value_or(base->get<double>()) != base->get<double>()) {
          fail(fmt::format("one rope_theta, {}", *theta), shown_json(*base));
        }
        theta = base->get<double>();
      }
    }
    options.rope_theta = theta.value_or(10000);
    if (!scaling) return;
    options.rope_scaling_factor = scaling->factor;
    options.rope_low_freq_factor = scaling->low;
    options.rope_high_freq_factor = scaling->high;
    options.rope_original_max_position_embeddings = scaling->original;
  }

  struct RopeScaling {
    double factor = 1;
    double low = 1;
    double high = 4;
    std::int64_t original = 8192;

    bool operator==(const RopeScaling&) const = default;
  };

  RopeScaling read_rope_scaling(const char* name, const Json& group) const {
    const auto type_at = group.find(group.contains("rope_type") ? "rope_type" : "type");
    Json type = type_at == group.end() || type_at->is_null() ? Json("default") : *type_at;
    const auto factor_at = group.find("factor");
    // A linear stretch by 1 is none.
    const bool is_none = type == "linear" && factor_at != group.end() && *factor_at == 1;
    if (is_none) type = "default";
    const bool llama3 = type == "llama3";
    if (!llama3 && type != "default") {
      fail(fmt::format(R"({} of rope_type "default" or "llama3")", name), shown_json(group));
    }
    RopeScaling scaling;
    std::size_t scaling_fields = 0;
    for (const auto& item : group.items()) {
      const Json& value = item.value();
      const auto is = [&](const char* field) { return item.key() == field && value.is_number(); };
      if (value.is_null()) continue;
      const bool is_type = item.key() == "rope_type" || item.key() == "type";
      if (is_type && (value == type || (is_none && value == "linear"))) continue;
      // Read by no type but those that stretch.
      if (!llama3 && (is("original_max_position_embeddings") || (is("factor") && value == 1))) {
        continue;
      }
      if (is("rope_theta") || (is("partial_rotary_factor") && value == 1)) continue;
      ++scaling_fields;
      if (llama3 && is("factor")) {
        scaling.factor = value.get<double>();
      } else if (llama3 && is("low_freq_factor")) {
        scaling.low = value.get<double>();
      } else if (llama3 && is("high_freq_factor")) {
        scaling.high = value.get<double>();
      } else if (llama3 && is("original_max_position_embeddings")) {
        scaling.original = whole("original_max_position_embeddings", value);
      } else {
        fail(fmt::format("{} of rope_type {} without {}", name, shown_json(type), item.key()),
             shown_json(group));
      }
    }
    if (llama3 && scaling_fields != 4) {
      fail(fmt::format("{} with factor, low_freq_factor, high_freq_factor and "
                       "original_max_position_embeddings",
                       name),
           shown_json(group));
    }
    return scaling;
  }

  std::int64_t token(const char* name) const {
    const Json* given = find(name);
    return given ? whole(name, *given) : -1;
  }

  std::vector<std::int64_t> tokens(const char* name) const {
    const Json* given = find(name);
    const auto read = [&](const Json& id) {
      const std::int64_t value = whole(name, id);
      const bool fits = value >= (given->is_array() ? 0 : -1) && value <= kMaxDecoderSize;
      if (!fits) fail(fmt::format("{} in [0, {}]", name, kMaxDecoderSize), shown_json(*given));
      return value;
    };
    return given ? token_list(*given, read) : std::vector<std::int64_t>();
  }

  std::int64_t size(const char* name, std::optional<std::int64_t> absent = {}) const {
    const Json* given = find(name);
    if (!given && absent) return *absent;
    if (!given) fail(name, "none");
    const std::int64_t value = whole(name, *given);
    if (value < 1) fail(fmt::format("{} of at least 1", name), shown_json(*given));
    if (value > kMaxDecoderSize) {
      fail(fmt::format("{} of at most {}", name, kMaxDecoderSize), shown_json(*given));
    }
    return value;
  }

  double number(const char* name, double absent) const {
    const Json* given = find(name);
    if (!given) return absent;
    if (!given->is_number()) fail(fmt::format("{} to be a number", name), shown_json(*given));
    return given->get<double>();
  }

  bool flag(const char* name, bool absent) const {
    const Json* given = find(name);
    if (!given) return absent;
    if (!given->is_boolean()) fail(fmt::format("{} to be true or false", name), shown_json(*given));
    return given->get<bool>();
  }

  std::int64_t whole(const char* name, const Json& given) const {
    const bool fits = given.is_number_integer() &&
                      !(given.is_number_unsigned() &&
                        given.get<std::uint64_t>() >
                            static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
    if (!fits) fail(fmt::format("{} to be a whole number", name), shown_json(given));
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

// One id alone, several as a list, as transformers writes them.
Json tokens_or_null(const std::vector<std::int64_t>& ids) {
  if (ids.empty()) return nullptr;
  return ids.size() == 1 ? Json(ids.front()) : Json(ids);
}

// Adds the end tokens of the file, if it is there.
void read_generation_config(const std::filesystem::path& path, DecoderConfig& config) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return;
  const std::string file = path.string();
  const auto fail = [&](std::string_view expected, const Json& got) {
    throw CheckpointError(fmt::format("{}: expected {}, got {}", file, expected, shown_json(got)));
  };
  config.generation = parse_json<CheckpointError>(read_file<CheckpointError>(file), file);
  if (!config.generation.is_object()) fail("an object", config.generation);
  const auto found = config.generation.find("eos_token_id");
  if (found == config.generation.end() || found->is_null()) return;
  const std::vector<std::int64_t> ids = token_list(*found, [&](const Json& id) {
    const bool fits = id.is_number_integer() && id >= -1 && id <= kMaxDecoderSize;
    if (!fits) fail("eos_token_id to be an id or a list of them", *found);
    return id.get<std::int64_t>();
  });
  DecoderOptions& options = config.options;
  options.extra_eos_token_ids.insert(options.extra_eos_token_ids.end(), ids.begin(), ids.end());
  const std::vector<std::int64_t> all = end_tokens_of(options);
  if (all.empty()) return;
  options.eos_token_id = all.front();
  options.extra_eos_token_ids.assign(all.begin() + 1, all.end());
}

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

// Biases that no family has, and a rotary scaling without a slope.
void check_attention(const DecoderOptions& options, std::string_view where) {
  if (options.attention_output_bias && !options.attention_bias) {
    throw ConfigError(
        fmt::format("{}: expected attention_bias with attention_output_bias, got none", where));
  }
  if (options.qk_norm && options.attention_bias != options.attention_output_bias) {
    throw ConfigError(
        fmt::format("{}: expected both attention biases or none with qk_norm, got one", where));
  }
  if (options.rope_high_freq_factor <= options.rope_low_freq_factor) {
    throw ConfigError(
        fmt::format("{}: expected rope_high_freq_factor above rope_low_freq_factor, got {} and {}",
                    where, options.rope_high_freq_factor, options.rope_low_freq_factor));
  }
}

const Family& family_of(const DecoderOptions& options) {
  if (options.qk_norm) return kQwen3;
  if (options.attention_bias && !options.attention_output_bias) return kQwen2;
  return options.sliding_window > 0 && !options.attention_bias ? kMistral : kLlama;
}

Json rope_parameters(const DecoderOptions& options) {
  if (options.rope_scaling_factor == 1) {
    return {{"rope_theta", options.rope_theta}, {"rope_type", "default"}};
  }
  return {{"factor", options.rope_scaling_factor},
          {"high_freq_factor", options.rope_high_freq_factor},
          {"low_freq_factor", options.rope_low_freq_factor},
          {"original_max_position_embeddings", options.rope_original_max_position_embeddings},
          {"rope_theta", options.rope_theta},
          {"rope_type", "llama3"}};
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
  expect_multiple("num_attention_heads", options.num_attention_heads, "num_key_value_heads",
                  options.num_key_value_heads);
  if (options.head_dim == 0) {
    expect_multiple("hidden_size", options.hidden_size, "num_attention_heads",
                    options.num_attention_heads);
    options.head_dim = options.hidden_size / options.num_attention_heads;
  }
  check_attention(options, where);
  if (options.head_dim % 2 != 0) {
    throw ConfigError(
        fmt::format("{}: expected an even head_dim, got {}; rotary positions turn "
                    "pairs of numbers",
                    where, options.head_dim));
  }
  return options;
}

bool says_nothing(const Json& value) {
  return value.is_null() || value == false || value == "" ||
         (value.is_structured() && value.empty());
}

std::vector<std::int64_t> end_tokens_of(const DecoderOptions& options) {
  std::vector<std::int64_t> ids;
  const auto add = [&](std::int64_t id) {
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  };
  add(options.eos_token_id);
  for (const std::int64_t id : options.extra_eos_token_ids) add(id);
  return ids;
}

DecoderConfig read_decoder_config(const std::string& path) {
  DecoderConfig config;
  config.json = parse_json<CheckpointError>(read_file<CheckpointError>(path), path);
  try {
    config.options = checked_decoder_options(ConfigReader(config.json, path).read(), path);
  } catch (const ConfigError& error) {
    throw CheckpointError(error.what());
  }
  read_generation_config(std::filesystem::path(path).parent_path() / "generation_config.json",
                         config);
  return config;
}

Json make_generation_config(const DecoderOptions& options) {
  return {{"bos_token_id", token_or_null(options.bos_token_id)},
          {"eos_token_id", tokens_or_null(end_tokens_of(options))},
          {"pad_token_id", token_or_null(options.pad_token_id)}};
}

Json make_decoder_config(const DecoderOptions& options) {
  const Family& family = family_of(options);
  Json config{
      {"architectures", Json::array({family.architecture})},
      {"attention_dropout", 0.0},
      {"bos_token_id", token_or_null(options.bos_token_id)},
      {"eos_token_id", tokens_or_null(end_tokens_of(options))},
      {"head_dim", options.head_dim},
      {"hidden_act", "silu"},
      {"hidden_size", options.hidden_size},
      {"initializer_range", options.initializer_range},
      {"intermediate_size", options.intermediate_size},
      {"max_position_embeddings", options.max_position_embeddings},
      {"model_type", family.model_type},
      {"num_attention_heads", options.num_attention_heads},
      {"num_hidden_layers", options.num_hidden_layers},
      {"num_key_value_heads", options.num_key_value_heads},
      {"pad_token_id", token_or_null(options.pad_token_id)},
      {"rms_norm_eps", options.rms_norm_eps},
      // Both forms: transformers before version 5 knows the second one only.
      {"rope_parameters", rope_parameters(options)},
      {"rope_theta", options.rope_theta},
      {"tie_word_embeddings", options.tie_word_embeddings},
      {"torch_dtype", "float32"},
      {"use_cache", true},
      {"vocab_size", options.vocab_size},
  };
  if (options.rope_scaling_factor != 1) config["rope_scaling"] = rope_parameters(options);
  if (family.has_bias_field) config["attention_bias"] = options.attention_bias;
  if (family.window_is_optional) {
    config["use_sliding_window"] = options.sliding_window > 0;
    if (options.sliding_window > 0) {
      config["sliding_window"] = options.sliding_window;
      config["max_window_layers"] = 0;
    }
  } else if (&family == &kMistral) {
    config["sliding_window"] = options.sliding_window;
  } else {
    config["mlp_bias"] = false;
    config["pretraining_tp"] = 1;
  }
  return config;
}

void set_config_dtype(Json& config, at::ScalarType dtype) {
  for (const char* name : {"dtype", "torch_dtype"}) {
    const auto at = config.find(name);
    if (at != config.end() && !at->is_null()) *at = config_dtype_name(dtype);
  }
}

}  // namespace prefopt::detail
