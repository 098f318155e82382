// SPDX-License-Identifier: Apache-2.0
#include "decoder/adapters/adapter_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file.h"
#include "core/text.h"
#include "decoder/strict_config.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

constexpr const char* kBaseModel = "base_model_name_or_path";

// Fields of PEFT's file that say where an adapter came from or how it is trained on.
constexpr std::array kHarmless = std::to_array<std::string_view>(
    {"auto_mapping", kBaseModel, "eva_config", "inference_mode", "lora_dropout", "megatron_core",
     "peft_version", "qalora_group_size", "revision", "task_type"});

// Fields that are options of the same name and meaning.
constexpr std::array kOptions = std::to_array<std::string_view>(
    {"r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform",
     "layers_pattern", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "bias",
     "modules_to_save"});

// PEFT's names of the score head, in the list for all models of its task SEQ_CLS.
constexpr std::array kScoreNames = std::to_array<std::string_view>({"classifier", "score"});

// PEFT's initialization is irrelevant afterwards, unless it changed the weights under the adapter
// as well: then the adapter fits these and no others.
BaseChange read_initialization(const StrictConfig& config) {
  const Json* value = config.find("init_lora_weights");
  if (!value || value->is_boolean()) return BaseChange::kNone;
  constexpr std::array kPlain =
      std::to_array<std::string_view>({"gaussian", "eva", "mica", "orthogonal"});
  if (value->is_string()) {
    const auto name = value->get<std::string>();
    if (contains(kPlain, name)) return BaseChange::kNone;
    if (name == "pissa") return BaseChange::kPissa;
    if (name == "olora") return BaseChange::kOlora;
  }
  throw CheckpointError(fmt::format(
      "{}: expected init_lora_weights that leave the model's weights as they are, or pissa or "
      "olora, got {}; convert the adapter in PEFT (save_pretrained with "
      "path_initial_model_for_weight_conversion), or merge it there",
      config.path(), shown_json(*value)));
}

/// Returns the fields that are options, as options have them.
Json options_of(const StrictConfig& config, bool has_score) {
  Json options = Json::object();
  for (const std::string_view name : kOptions) {
    const Json* value = config.find(name);
    if (value) options[std::string(name)] = *value;
  }
  if (!has_score || !options.contains("modules_to_save")) return options;
  Json& saved = options["modules_to_save"];
  if (!saved.is_array()) return options;  // refused with the others
  Json others = Json::array();
  for (const Json& name : saved) {
    const bool is_score = name.is_string() && contains(kScoreNames, name.get<std::string>());
    if (!is_score) others.push_back(name);
  }
  saved = std::move(others);
  return options;
}

}  // namespace

AdapterConfig read_adapter_config(const std::string& path, bool has_score) {
  const Json json = parse_json<CheckpointError>(read_file<CheckpointError>(path), path);
  const StrictConfig config(json, path);
  const Json* kind = config.find("peft_type");
  if (!kind || *kind != "LORA") {
    config.fail(R"(peft_type to be "LORA")", kind ? shown_json(*kind) : "none");
  }
  std::vector<std::string_view> understood(kOptions.begin(), kOptions.end());
  understood.insert(understood.end(), {"peft_type", "init_lora_weights", "ensure_weight_tying"});
  config.check({.understood = std::move(understood), .harmless = kHarmless, .required = {}});
  for (const char* name : {"r", "lora_alpha", "target_modules"}) {
    if (!config.find(name)) config.fail(name, "none");
  }
  AdapterConfig result;
  result.change = read_initialization(config);
  result.ties_weights = config.flag("ensure_weight_tying", false);
  result.options = options_from_json<LoraOptions>(options_of(config, has_score).dump(), path);
  return result;
}

Json base_model_of(const std::string& folder) {
  const std::string path = folder + "/adapter_config.json";
  const Json config = parse_json<CheckpointError>(read_file<CheckpointError>(path), path);
  return config.is_object() ? config.value(kBaseModel, Json()) : Json();
}

Json adapter_config_json(const LoraOptions& options, const std::string& base, bool has_score) {
  const auto parsed = [](const std::string& json) { return parse_json<ConfigError>(json, "lora"); };
  Json targets = parsed(options.target_modules.json);
  if (targets.is_array()) std::sort(targets.begin(), targets.end());
  std::vector<std::string> saved = options.modules_to_save;
  if (has_score) saved.emplace_back("score");
  constexpr std::array<std::string_view, 3> kBiases{"none", "all", "lora_only"};
  return {{"alpha_pattern", parsed(options.alpha_pattern)},
          {kBaseModel, base.empty() ? Json(nullptr) : Json(base)},
          {"bias", kBiases[static_cast<std::size_t>(options.bias)]},
          {"exclude_modules", parsed(options.exclude_modules.json)},
          {"fan_in_fan_out", false},
          {"inference_mode", true},
          {"init_lora_weights", true},
          {"layers_pattern", parsed(options.layers_pattern)},
          {"layers_to_transform", parsed(options.layers_to_transform)},
          {"lora_alpha", options.lora_alpha},
          {"lora_bias", options.lora_bias},
          {"lora_dropout", 0.0},
          {"modules_to_save", saved.empty() ? Json(nullptr) : Json(saved)},
          {"peft_type", "LORA"},
          {"r", options.r},
          {"rank_pattern", parsed(options.rank_pattern)},
          {"target_modules", std::move(targets)},
          {"task_type", has_score ? "SEQ_CLS" : "CAUSAL_LM"},
          {"use_dora", options.use_dora},
          {"use_rslora", options.use_rslora}};
}

}  // namespace prefopt::detail
