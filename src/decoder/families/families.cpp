// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/text.h"
#include "decoder/families/family.h"
#include "prefopt/error.h"

// A line for each family; its file defines `const Family& NAME_family()`.
#define PREFOPT_FAMILIES(add)                                                                   \
  add(llama) add(mistral) add(qwen2) add(qwen3) add(granite) add(smollm3) add(phi3) add(gemma2) \
      add(gemma3) add(olmo2) add(olmo3) add(mixtral) add(qwen3_moe)

namespace prefopt::detail {

#define PREFOPT_DECLARE(name) const Family& name##_family();
PREFOPT_FAMILIES(PREFOPT_DECLARE)
#undef PREFOPT_DECLARE

namespace {

std::vector<const Family*>& all_families() {
#define PREFOPT_ADDRESS(name) &name##_family(),
  static std::vector<const Family*> all = {PREFOPT_FAMILIES(PREFOPT_ADDRESS)};
#undef PREFOPT_ADDRESS
  return all;
}

const Family* find_by(std::string_view FamilyTraits::*name, std::string_view wanted) {
  for (const Family* family : families()) {
    if (!wanted.empty() && family->traits.*name == wanted) return family;
  }
  return nullptr;
}

// Null if no family has the options.
const Family* family_told_by(const DecoderOptions& options) {
  for (const Family* family : families()) {
    const FamilyTraits& traits = family->traits;
    const bool holds_window = traits.has_window || options.sliding_window == 0;
    if (traits.told_by_options && holds_window && family->misfit(options).empty()) return family;
  }
  return nullptr;
}

bool is_default(const DecoderOptions& options) {
  return options.family == families().front()->traits.model_type;
}

std::string replaced(std::string name, std::string_view from, std::string_view to) {
  if (const auto at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
  return name;
}

}  // namespace

const std::vector<const Family*>& families() { return all_families(); }

const Family* find_family(std::string_view model_type) {
  return find_by(&FamilyTraits::model_type, model_type);
}

const Family* find_gguf_family(std::string_view architecture) {
  return find_by(&FamilyTraits::gguf, architecture);
}

const Family& family_named(std::string_view model_type, std::string_view where) {
  if (const Family* family = find_family(model_type)) return *family;
  std::vector<std::string_view> names;
  for (const Family* family : families()) names.push_back(family->traits.model_type);
  throw ConfigError(fmt::format("{}: expected family to be {}, got '{}'{}", where,
                                list_names(names, '\''), shown_text(std::string(model_type)),
                                did_you_mean(model_type, names)));
}

const Family& family_of(const DecoderOptions& options, std::string_view where) {
  const Family& named = family_named(options.family, where);
  const Family* told = is_default(options) ? family_told_by(options) : nullptr;
  if (told) return *told;
  const std::string misfit = named.misfit(options);
  if (misfit.empty()) return named;
  throw ConfigError(fmt::format("{}: expected options that the family '{}' has, got {}", where,
                                named.traits.model_type, misfit));
}

bool is_family_implied(const DecoderOptions& options) {
  if (is_default(options)) return true;
  const Family* told = family_told_by(options);
  return told && told->traits.model_type == options.family;
}

std::string list_names(const std::vector<std::string_view>& names, char quote) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::string_view before = i == 0 ? "" : i + 1 == names.size() ? " or " : ", ";
    text += fmt::format("{}{}{}{}", before, quote, names[i], quote);
  }
  return text;
}

std::string name_in_file(const Family& family, std::string name) {
  for (const auto& [here, in_file] : family.tensor_names()) {
    name = replaced(std::move(name), here, in_file);
  }
  return name;
}

std::string name_from_file(const Family& family, std::string name) {
  for (const auto& [here, in_file] : family.tensor_names()) {
    name = replaced(std::move(name), in_file, here);
  }
  return name;
}

std::string first_misfit(std::initializer_list<FlagRule> rules) {
  for (const FlagRule& rule : rules) {
    if (rule.given != rule.expected) return fmt::format("{} {}", rule.name, rule.given);
  }
  return "";
}

std::string llama_misfit(const DecoderOptions& options) {
  return first_misfit(
      {{"qk_norm", options.qk_norm, false},
       {"attention_output_bias", options.attention_output_bias, options.attention_bias}});
}

void read_window_of_all(const StrictConfig& config, bool used, std::int64_t absent,
                        DecoderOptions& options) {
  DecoderOptions by_types = options;
  const bool has_window =
      config.names("sliding_window") ? config.find("sliding_window") != nullptr : absent > 0;
  const bool slides = used && has_window;
  read_windows(
      config, [&](std::int64_t) { return slides; }, absent, by_types);
  const bool alike =
      by_types.family_fields == options.family_fields && (by_types.sliding_window > 0) == slides;
  if (!alike) {
    config.fail(fmt::format("layer_types of {} only in {}",
                            slides ? kSlidingAttention : kFullAttention, options.family),
                shown_json(*config.find("layer_types")));
  }
  options.sliding_window = by_types.sliding_window;
}

void read_optional_windows(const StrictConfig& config, DecoderOptions& options) {
  const bool used = config.flag("use_sliding_window", false);
  const Json* given = config.find("max_window_layers");
  const std::int64_t first = given ? config.whole("max_window_layers", *given) : 28;
  read_windows(
      config, [&](std::int64_t layer) { return used && layer >= first; }, /*absent=*/4096, options);
}

void read_attention_bias(const StrictConfig& config, DecoderOptions& options) {
  options.attention_bias = config.flag("attention_bias", false);
  options.attention_output_bias = options.attention_bias;
}

void expect_attention_bias(const StrictConfig& config, bool bias, std::string_view family) {
  if (config.flag("attention_bias", bias) == bias) return;
  config.fail(fmt::format("attention_bias to be {} in {}", bias, family),
              shown_json(*config.find("attention_bias")));
}

void write_optional_window(const DecoderOptions& options, Json& config) {
  config["use_sliding_window"] = options.sliding_window > 0;
  if (options.sliding_window == 0) return;
  config["sliding_window"] = options.sliding_window;
  config["max_window_layers"] = 0;
}

void write_layer_windows(const DecoderOptions& options, Json& config) {
  const bool has_window = options.sliding_window > 0;
  config["sliding_window"] = has_window ? Json(options.sliding_window) : Json(nullptr);
  Json types = Json::array();
  for (const bool slides : sliding_layers(options, FamilyFields(options, "decoder"))) {
    types.push_back(slides ? kSlidingAttention : kFullAttention);
  }
  config["layer_types"] = std::move(types);
}

ModelSpec gemma_spec(const DecoderOptions& options, std::string_view where) {
  ModelSpec spec = plain_spec(options, where);
  const double scalar = FamilyFields(options, where).positive("query_pre_attn_scalar", 256);
  spec.embedding_scale = std::sqrt(static_cast<double>(options.hidden_size));
  spec.norm.adds_one = true;
  for (LayerSpec& layer : spec.layers) {
    layer.norm.adds_one = true;
    layer.norms = {.before = true, .after = true};
    layer.gate = Gate::kGeluTanh;
    layer.query_scale = 1 / std::sqrt(scalar);
  }
  return spec;
}

std::vector<RequiredValue> gemma_required_values() {
  return {{"hidden_activation", "gelu_pytorch_tanh"},
          {"hidden_act", "gelu_pytorch_tanh"},
          {"use_bidirectional_attention", false}};
}

void write_gemma(const DecoderOptions& options, Json& config) {
  config["attention_bias"] = options.attention_bias;
  config["hidden_act"] = "gelu_pytorch_tanh";
  config["hidden_activation"] = "gelu_pytorch_tanh";
  write_layer_windows(options, config);
}

ModelSpec olmo_spec(const DecoderOptions& options, std::string_view where) {
  ModelSpec spec = plain_spec(options, where);
  for (LayerSpec& layer : spec.layers) {
    layer.norms = {.before = false, .after = true};
    layer.query_key_norm = QueryKeyNorm::kAll;
  }
  return spec;
}

std::string olmo_misfit(const DecoderOptions& options) {
  return first_misfit(
      {{"qk_norm", options.qk_norm, true},
       {"attention_output_bias", options.attention_output_bias, options.attention_bias}});
}

ExpertSpec read_experts(const StrictConfig& config, const ExpertDefaults& defaults) {
  // transformers 5 writes num_local_experts in all families.
  std::string_view name = defaults.count_name;
  if (!config.find(name)) name = "num_local_experts";
  const ExpertSpec experts{.count = config.size(name, defaults.count),
                           .chosen = config.size("num_experts_per_tok", defaults.chosen)};
  if (experts.chosen <= experts.count) return experts;
  config.fail(fmt::format("num_experts_per_tok of at most {}, the experts", experts.count),
              fmt::format("{}", experts.chosen));
}

std::vector<RequiredValue> router_required_values() { return {{"router_jitter_noise", 0}}; }

void keep_router_loss(const StrictConfig& config, DecoderOptions& options) {
  constexpr std::string_view kAsked = "output_router_logits";
  if (config.flag(kAsked, false)) set_family_field(options, kAsked, true);
}

double read_router_loss(const StrictConfig& config) {
  const double coefficient = config.number("router_aux_loss_coef", 0.001);
  if (!(coefficient >= 0)) {
    config.fail("router_aux_loss_coef of at least 0", fmt::format("{}", coefficient));
  }
  return config.flag("output_router_logits", false) ? coefficient : 0;
}

std::int64_t gguf_head_dim(const DecoderOptions& options) {
  return options.head_dim > 0 ? options.head_dim
                              : options.hidden_size / options.num_attention_heads;
}

void read_gguf_gemma(std::int64_t layers_of_27b, const SlidingRule& slides,
                     DecoderOptions& options) {
  const std::int64_t scalar = options.num_hidden_layers == layers_of_27b
                                  ? options.hidden_size / options.num_attention_heads
                                  : gguf_head_dim(options);
  set_family_field(options, "query_pre_attn_scalar", scalar);
  if (options.sliding_window == 0) return;
  std::vector<bool> sliding;
  for (std::int64_t i = 0; i < options.num_hidden_layers; ++i) sliding.push_back(slides(i));
  set_sliding_layers(sliding, options);
}

void read_gguf_experts(const GgufFields& fields, std::string_view count_name,
                       DecoderOptions& options) {
  for (const char* name : {"expert_count", "expert_used_count"}) {
    if (!fields.has(name)) fields.fail(fields.key(name), "none");
  }
  set_family_field(options, count_name, fields.integer("expert_count"));
  set_family_field(options, "num_experts_per_tok", fields.integer("expert_used_count"));
}

void write_gguf_experts(const ModelSpec& spec, GgufFieldWriter& fields) {
  fields.integer("expert_count", experts_of(spec).count);
  fields.integer("expert_used_count", experts_of(spec).chosen);
}

ExpertSpec experts_of(const ModelSpec& spec) {
  for (const LayerSpec& layer : spec.layers) {
    if (layer.experts.count > 0) return layer.experts;
  }
  return {};
}

AddedFamily::AddedFamily(const Family& family) { all_families().push_back(&family); }
AddedFamily::~AddedFamily() { all_families().pop_back(); }

}  // namespace prefopt::detail
