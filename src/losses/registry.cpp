// SPDX-License-Identifier: Apache-2.0
#include "prefopt/losses/registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <iterator>
#include <mutex>

#include "core/json.h"
#include "core/text.h"
#include "losses/builtin.h"
#include "losses/trl_config.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::Json;

// Entries never move, so that references handed out stay good while others register.
struct Registry {
  std::recursive_mutex mutex;
  std::deque<LossEntry> entries;

  const LossEntry* find(std::string_view name) const {
    for (const LossEntry& entry : entries) {
      const auto names = names_of(entry.info);
      if (std::find(names.begin(), names.end(), name) != names.end()) return &entry;
    }
    return nullptr;
  }

  std::vector<std::string_view> names() const {
    std::vector<std::string_view> all;
    for (const LossEntry& entry : entries) {
      const auto names = names_of(entry.info);
      all.insert(all.end(), names.begin(), names.end());
    }
    return all;
  }

  static std::vector<std::string_view> names_of(const LossInfo& info) {
    std::vector<std::string_view> names{info.name};
    names.insert(names.end(), info.aliases.begin(), info.aliases.end());
    for (const LossPreset& preset : info.presets) names.push_back(preset.name);
    return names;
  }
};

/// A name that two losses go by elsewhere.
struct AmbiguousName {
  std::string_view name;
  std::string_view losses;
  std::string_view reason;
};

constexpr AmbiguousName kAmbiguous[] = {
    {"sigmoid-norm", "'dpo' or 'sigmoid_norm'",
     "RSO's sigmoid-norm (arXiv:2309.06657 eq. 8) has a reference, dpo; Tulu 3's sigmoid_norm "
     "divides by lengths"},
    {"rdpo", "'robust_dpo' or 'r_dpo'",
     "robust DPO (arXiv:2403.00409) and length-regularized R-DPO (arXiv:2403.19159) both go by it"},
};

/// Names of objectives on tokens, which rooms above this one know.
constexpr std::string_view kObjectives[] = {
    "reinforce", "remax", "rloo",         "loop", "grpo", "dr_grpo", "dapo",    "gspo",
    "cispo",     "sapo",  "reinforce_pp", "opo",  "kimi", "ppo",     "ppo_max", "rto"};

/// Names of losses on tokens of given rows, likewise.
constexpr std::string_view kTokenLosses[] = {"oreo", "iqlearn"};

/// Sets the options that a preset's name means.
void apply_preset(Json& config, const LossEntry& entry) {
  const std::string name = config["type"].get<std::string>();
  const auto& presets = entry.info.presets;
  const auto preset = std::find_if(presets.begin(), presets.end(),
                                   [&](const LossPreset& p) { return p.name == name; });
  if (preset == presets.end()) return;
  const Json options = detail::parse_json<ConfigError>(preset->options, name);
  for (const auto& [option, value] : options.items()) {
    const auto doc =
        std::find_if(entry.options.begin(), entry.options.end(),
                     [&, &key = option](const FieldDoc& field) { return field.name == key; });
    std::vector<std::string> keys = doc->aliases;
    keys.push_back(option);
    const auto given = std::find_if(keys.begin(), keys.end(),
                                    [&](const std::string& key) { return config.contains(key); });
    if (given == keys.end()) {
      config[option] = value;
    } else if (!value.is_number() && config[*given] != value) {
      throw ConfigError(fmt::format("loss: expected {} {} with '{}', which stands for it, got {}",
                                    *given, detail::shown_json(value), name,
                                    detail::shown_json(config[*given])));
    }
  }
}

/// A probability that one completion of a pair is the better one says nothing to a loss that does
/// not compare the two.
void check_label_probs(const Json& config, const LossEntry& entry) {
  constexpr std::string_view kOption = "use_label_probs";
  const bool has_option =
      std::any_of(entry.options.begin(), entry.options.end(),
                  [&](const FieldDoc& option) { return option.name == kOption; });
  if (has_option || !config.contains(kOption) || entry.info.name == "mix") return;
  throw ConfigError(
      fmt::format("{}: expected no key '{}', got it; the loss does not compare the two completions "
                  "of a pair, so that the probability of their order says nothing to it",
                  entry.info.name, kOption));
}

Registry& registry() {
  static Registry instance;
  static std::once_flag filled;
  std::call_once(filled, [] {
    detail::for_each_builtin_loss(
        [](LossEntry entry) { instance.entries.push_back(std::move(entry)); });
  });
  return instance;
}

}  // namespace

Loss make_loss(std::string_view config_json) {
  Json config = detail::parse_json<ConfigError>(config_json, "loss");
  if (!config.is_object()) {
    throw ConfigError(fmt::format("loss: expected an object with a key 'type', got {}",
                                  detail::shown_json(config)));
  }
  detail::translate_trl(config);
  const auto type = config.find("type");
  if (type == config.end() || !type->is_string()) {
    throw ConfigError(fmt::format("loss: expected a key 'type' that names a loss, got {}",
                                  detail::shown_json(config)));
  }
  const LossEntry& entry = find_loss(config["type"].get<std::string>());
  apply_preset(config, entry);
  check_label_probs(config, entry);
  config.erase("type");
  return entry.make(detail::dump_json(config));
}

std::vector<std::string> registered_losses() {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  std::vector<std::string> names;
  for (const LossEntry& entry : all.entries) names.push_back(entry.info.name);
  return names;
}

const LossEntry& find_loss(std::string_view name) {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  if (const LossEntry* entry = all.find(name)) return *entry;
  for (const AmbiguousName& other : kAmbiguous) {
    if (other.name != name) continue;
    throw ConfigError(
        fmt::format("loss: expected {}, got '{}'; {}", other.losses, name, other.reason));
  }
  if (std::find(std::begin(kObjectives), std::end(kObjectives), name) != std::end(kObjectives)) {
    throw ConfigError(fmt::format(
        "loss: expected a loss on rows, got '{}', an objective on tokens, which takes rollouts",
        name));
  }
  const auto* const end = std::end(kTokenLosses);
  if (std::find(std::begin(kTokenLosses), end, name) != end) {
    throw ConfigError(fmt::format(
        "loss: expected a loss on sums of tokens, got '{}', which is on tokens; `prefopt loss "
        "--rollouts` evaluates it",
        name));
  }
  throw ConfigError(fmt::format("loss: expected a registered loss, got '{}'{}", name,
                                detail::did_you_mean(name, all.names())));
}

void register_loss(LossEntry entry) {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  for (const std::string_view name : Registry::names_of(entry.info)) {
    if (all.find(name)) {
      throw ConfigError(fmt::format("loss: expected a name that is free, got '{}'", name));
    }
  }
  all.entries.push_back(std::move(entry));
}

}  // namespace prefopt
