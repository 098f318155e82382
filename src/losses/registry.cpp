// SPDX-License-Identifier: Apache-2.0
#include "prefopt/losses/registry.h"

#include <fmt/format.h>

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

// TRL's `loss_type` (a name or a list, with `loss_weights`) as our `type`.
void translate_trl(Json& config) {
  const auto given = config.find("loss_type");
  if (given == config.end() || config.contains("type")) return;
  const Json types = given->is_array() ? *given : Json::array({*given});
  const Json weights = config.value("loss_weights", Json::array());
  const auto refuse = [&]() {
    throw ConfigError(fmt::format(
        "loss: expected one loss_type, or sigmoid with sft and loss_weights [1, eta], got {} with "
        "loss_weights {}",
        detail::dump_json(types), detail::dump_json(weights)));
  };
  if (types.size() == 1 && types[0].is_string()) {
    if (!weights.empty() && weights != Json::array({1})) refuse();
    config["type"] = types[0];
  } else if (types == Json::array({"sigmoid", "sft"})) {
    const bool weighted = weights.is_array() && weights.size() == 2 && weights[1].is_number();
    if (!weights.empty() && (!weighted || weights[0] != 1)) refuse();
    config["type"] = "rpo";
    config["eta"] = weights.empty() ? Json(1) : weights[1];
  } else {
    refuse();
  }
  config.erase("loss_type");
  config.erase("loss_weights");
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
  const LossEntry& entry = find_loss(type->get<std::string>());
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
