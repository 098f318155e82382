// SPDX-License-Identifier: Apache-2.0
#include "prefopt/losses/registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
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
