// SPDX-License-Identifier: Apache-2.0
#include "prefopt/losses/registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <mutex>

#include "core/json.h"
#include "core/text.h"
#include "losses/builtin.h"
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
      if (entry.info.name == name) return &entry;
      for (const std::string& alias : entry.info.aliases) {
        if (alias == name) return &entry;
      }
    }
    return nullptr;
  }

  std::vector<std::string_view> names() const {
    std::vector<std::string_view> all;
    for (const LossEntry& entry : entries) {
      all.push_back(entry.info.name);
      all.insert(all.end(), entry.info.aliases.begin(), entry.info.aliases.end());
    }
    return all;
  }
};

Registry& registry() {
  static Registry instance;
  static std::once_flag filled;
  std::call_once(filled, [] {
    detail::for_each_builtin_loss(
        [](LossEntry entry) { instance.entries.push_back(std::move(entry)); });
  });
  return instance;
}

bool has_option(const LossEntry& entry, const std::string& key) {
  return std::any_of(entry.options.begin(), entry.options.end(), [&](const FieldDoc& option) {
    return option.name == key || std::count(option.aliases.begin(), option.aliases.end(), key) > 0;
  });
}

// TRL's flag is our choice.
void translate_weighting(Json& config) {
  const auto given = config.find("use_weighting");
  if (given == config.end() || !given->is_boolean()) return;
  if (given->get<bool>()) config["weighting"] = "sampled_alignment";
  config.erase("use_weighting");
}

// TRL's list of losses as terms of a mix; each takes those of the common options that it has.
Json mix_of(const Json& types, const Json& weights, const Json& options) {
  Json terms = Json::array();
  for (std::size_t i = 0; i < types.size(); ++i) {
    const LossEntry& entry = find_loss(types[i].get<std::string>());
    Json loss = {{"type", entry.info.name}};
    for (const auto& [key, value] : options.items()) {
      if (has_option(entry, key)) loss[key] = value;
    }
    if (options.contains("weighting") && !loss.contains("weighting")) {
      throw ConfigError(
          fmt::format("loss: expected losses that can be weighted beside use_weighting, got '{}'",
                      entry.info.name));
    }
    terms.push_back({{"weight", weights.empty() ? Json(1) : weights[i]}, {"loss", loss}});
  }
  for (const auto& item : options.items()) {
    const bool known = std::any_of(terms.begin(), terms.end(), [&](const Json& term) {
      return term["loss"].contains(item.key());
    });
    if (!known) {
      throw ConfigError(fmt::format("loss: expected an option of one of {}, got '{}'",
                                    detail::dump_json(types), item.key()));
    }
  }
  return {{"type", "mix"}, {"terms", terms}};
}

// TRL's `loss_type` (a name or a list, with `loss_weights`) as our `type`.
void translate_trl(Json& config) {
  translate_weighting(config);
  const auto given = config.find("loss_type");
  if (given == config.end() || config.contains("type")) return;
  const Json types = given->is_array() ? *given : Json::array({*given});
  const Json weights = config.value("loss_weights", Json::array());
  const auto all = [](const Json& list, bool (Json::*is)() const noexcept) {
    return list.is_array() &&
           std::all_of(list.begin(), list.end(), [&](const Json& x) { return (x.*is)(); });
  };
  if (types.empty() || !all(types, &Json::is_string) || !all(weights, &Json::is_number) ||
      (!weights.empty() && weights.size() != types.size())) {
    throw ConfigError(fmt::format(
        "loss: expected loss_type to be a name or a list of them, with as many loss_weights or "
        "none, got {} with loss_weights {}",
        detail::dump_json(*given), detail::dump_json(weights)));
  }
  config.erase("loss_type");
  config.erase("loss_weights");
  if (types == Json::array({"exo_pair"})) config["trl_constants"] = true;
  if (types.size() == 1 && (weights.empty() || weights[0] == 1)) {
    config["type"] = types[0];
  } else {
    config = mix_of(types, weights, config);
  }
}

}  // namespace

Loss make_loss(std::string_view config_json) {
  Json config = detail::parse_json<ConfigError>(config_json, "loss");
  if (!config.is_object()) {
    throw ConfigError(fmt::format("loss: expected an object with a key 'type', got {}",
                                  detail::dump_json(config)));
  }
  translate_trl(config);
  const auto type = config.find("type");
  if (type == config.end() || !type->is_string()) {
    throw ConfigError(fmt::format("loss: expected a key 'type' that names a loss, got {}",
                                  detail::dump_json(config)));
  }
  if (*type == "apo_zero_unpaired") {  // TRL's name for KTO around zero
    config["type"] = "kto";
    config["estimate_kl"] = false;
  }
  const LossEntry& entry = find_loss(config["type"].get<std::string>());
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
  throw ConfigError(fmt::format("loss: expected a registered loss, got '{}'{}", name,
                                detail::did_you_mean(name, all.names())));
}

void register_loss(LossEntry entry) {
  Registry& all = registry();
  const std::lock_guard lock(all.mutex);
  std::vector<std::string> names = entry.info.aliases;
  names.insert(names.begin(), entry.info.name);
  for (const std::string& name : names) {
    if (all.find(name)) {
      throw ConfigError(fmt::format("loss: expected a name that is free, got '{}'", name));
    }
  }
  all.entries.push_back(std::move(entry));
}

}  // namespace prefopt
