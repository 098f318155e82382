// SPDX-License-Identifier: Apache-2.0
#include "decoder/decoder_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <string_view>
#include <system_error>
#include <vector>

#include "core/file.h"
#include "core/text.h"
#include "decoder/families/family.h"
#include "decoder/family_fields.h"
#include "decoder/strict_config.h"
#include "prefopt/error.h"

namespace prefopt {

void DecoderOptions::fields(FieldVisitor& v) {
  // Texts from before the family was stored lack it, and are the same without it.
  if (!v.writes() || !detail::is_family_implied(*this)) {
    v.text({"family", "model_type of Hugging Face's config.json; by default what the rest implies"},
           family);
  }
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
  // Later ones, which texts from before lack.
  if (!v.writes() || sliding_window > 0) {
    v.integer({"sliding_window", "tokens that layers with a window see back; 0: all"},
              sliding_window, Range::between(0, detail::kMaxDecoderSize));
  }
  if (!v.writes() || family_fields != "{}") {
    v.json({"family_fields", "further fields of config.json that the family reads"}, family_fields);
  }
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
    "attention_bias",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "original_max_position_embeddings",
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
    "cache_implementation",
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

// Only the value that leaves results as this decoder computes them is taken.
std::vector<RequiredValue> required_values() {
  return {
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
}

KnownFields known_fields(const Family& family) {
  KnownFields known{
      .understood = family.understood(), .harmless = kHarmless, .required = family.required()};
  const std::vector<RequiredValue> own = known.required;
  for (const RequiredValue& field : required_values()) {
    const auto is_it = [&](const RequiredValue& other) { return other.name == field.name; };
    if (contains(known.understood, field.name)) continue;
    if (std::none_of(own.begin(), own.end(), is_it)) known.required.push_back(field);
  }
  known.understood.insert(known.understood.end(), kUnderstood.begin(), kUnderstood.end());
  return known;
}

const Family& read_family(const StrictConfig& config) {
  const Json* type = config.find("model_type");
  const Family* family =
      type && type->is_string() ? find_family(type->get<std::string>()) : nullptr;
  if (!family) {
    std::vector<std::string_view> names;
    for (const Family* known : families()) names.push_back(known->traits.model_type);
    config.fail("model_type to be " + list_names(names, '"'), type ? shown_json(*type) : "none");
  }
  if (family->traits.needs_key_value_heads && !config.find("num_key_value_heads")) {
    config.fail("num_key_value_heads", "none");
  }
  return *family;
}

void read_sizes(const StrictConfig& config, const FamilyTraits& traits, DecoderOptions& options) {
  options.vocab_size = config.size("vocab_size");
  options.hidden_size = config.size("hidden_size");
  options.intermediate_size = config.size("intermediate_size");
  options.num_hidden_layers = config.size("num_hidden_layers");
  options.num_attention_heads = config.size("num_attention_heads");
  options.num_key_value_heads = config.size("num_key_value_heads", options.num_attention_heads);
  options.head_dim = config.size("head_dim", traits.head_dim);
  options.max_position_embeddings =
      config.size("max_position_embeddings", traits.max_position_embeddings);
}

DecoderOptions read_options(const StrictConfig& config) {
  const Family& family = read_family(config);
  const FamilyTraits& traits = family.traits;
  config.check(known_fields(family));
  DecoderOptions options;
  options.family = traits.model_type;
  read_sizes(config, traits, options);
  // The fields below have an entry for each layer.
  options = checked(std::move(options), config.path());
  options.rms_norm_eps = config.number("rms_norm_eps", traits.rms_norm_eps);
  options.initializer_range = config.number("initializer_range", 0.02);
  options.tie_word_embeddings = config.flag("tie_word_embeddings", traits.tie_word_embeddings);
  family.read(config, options);
  family.read_rope(config, options);
  options.bos_token_id = config.token("bos_token_id");
  options.pad_token_id = config.token("pad_token_id");
  options.extra_eos_token_ids = config.tokens("eos_token_id");
  if (!options.extra_eos_token_ids.empty()) {
    options.eos_token_id = options.extra_eos_token_ids.front();
    options.extra_eos_token_ids.erase(options.extra_eos_token_ids.begin());
  }
  return options;
}

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

// Both forms: transformers before version 5 knows rope_theta and rope_scaling only.
void write_rope(const DecoderOptions& options, Json& config) {
  const FamilyFields fields(options, "decoder");
  if (has_rope_pair(fields)) {
    config.erase("rope_theta");
    return;
  }
  const RopeSpec rope = rope_of(options, fields);
  config["rope_parameters"] = rope_to_json(rope);
  if (rope.type != RopeType::kDefault) config["rope_scaling"] = config["rope_parameters"];
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
  const Family& family = family_of(options, where);
  options.family = family.traits.model_type;
  for (const RopeSpec& rope : family.spec(options, where).ropes) {
    check_rope(rope, options.head_dim, where);
  }
  return options;
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
    config.options = checked_decoder_options(read_options(StrictConfig(config.json, path)), path);
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
  const Family& family = family_named(options.family, "decoder");
  Json config{
      {"architectures", Json::array({family.traits.architecture})},
      {"attention_dropout", 0.0},
      {"bos_token_id", token_or_null(options.bos_token_id)},
      {"eos_token_id", tokens_or_null(end_tokens_of(options))},
      {"head_dim", options.head_dim},
      {"hidden_act", "silu"},
      {"hidden_size", options.hidden_size},
      {"initializer_range", options.initializer_range},
      {"intermediate_size", options.intermediate_size},
      {"max_position_embeddings", options.max_position_embeddings},
      {"model_type", family.traits.model_type},
      {"num_attention_heads", options.num_attention_heads},
      {"num_hidden_layers", options.num_hidden_layers},
      {"num_key_value_heads", options.num_key_value_heads},
      {"pad_token_id", token_or_null(options.pad_token_id)},
      {"rms_norm_eps", options.rms_norm_eps},
      {"rope_theta", options.rope_theta},
      {"tie_word_embeddings", options.tie_word_embeddings},
      {"torch_dtype", "float32"},
      {"use_cache", true},
      {"vocab_size", options.vocab_size},
  };
  family.write(options, config);
  config.update(family_fields_of(options));
  write_rope(options, config);
  return config;
}

namespace {

constexpr std::string_view kCausal = "ForCausalLM";
constexpr std::string_view kClassifier = "ForSequenceClassification";

}  // namespace

Json make_reward_config(Json config, const Family& family) {
  std::string name(family.traits.architecture);
  if (name.ends_with(kCausal)) name.resize(name.size() - kCausal.size());
  config["architectures"] = Json::array({name + std::string(kClassifier)});
  // transformers counts labels by their names.
  config.erase("num_labels");
  config["id2label"] = {{"0", "LABEL_0"}};
  config["label2id"] = {{"LABEL_0", 0}};
  return config;
}

void check_one_label(const DecoderConfig& config, const std::string& path) {
  const auto fail = [&](std::string_view name, const Json& got) {
    throw CheckpointError(
        fmt::format("{}/config.json: expected {} of one label, the reward, got {}; a model that "
                    "tells classes apart has no reward",
                    path, name, shown_json(got)));
  };
  const Json count = config.json.value("num_labels", Json());
  if (!count.is_null() && count != 1) fail("num_labels", count);
  const Json names = config.json.value("id2label", Json());
  if (!names.is_null() && !(names.is_object() && names.size() == 1)) fail("id2label", names);
}

bool names_reward_model(const std::string& path) {
  const std::string file = path + "/config.json";
  const Json config = parse_json<CheckpointError>(read_file<CheckpointError>(file), file);
  if (!config.is_object()) return false;
  const Json names = config.value("architectures", Json());
  return names.is_array() && names.size() == 1 && names[0].is_string() &&
         names[0].get<std::string>().ends_with(kClassifier);
}

void set_config_dtype(Json& config, at::ScalarType dtype) {
  for (const char* name : {"dtype", "torch_dtype"}) {
    const auto at = config.find(name);
    if (at != config.end() && !at->is_null()) *at = config_dtype_name(dtype);
  }
}

}  // namespace prefopt::detail
