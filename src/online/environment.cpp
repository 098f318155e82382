// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/environment.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>

#include "core/json.h"
#include "core/text.h"
#include "prefopt/error.h"
#include "prefopt/online/guess.h"

namespace prefopt {
namespace {

using detail::Json;

class LocalEnvironments final : public Environments {
 public:
  explicit LocalEnvironments(EnvironmentFactory factory) : factory_(std::move(factory)) {}

  std::vector<std::string> start(const std::vector<Episode>& episodes) override {
    episodes_.clear();
    std::vector<std::string> observations;
    for (const Episode& episode : episodes) {
      episodes_.push_back(factory_(episode));
      if (!episodes_.back()) {
        throw ConfigError("environment: expected one for each episode, got null of the factory");
      }
      observations.push_back(episodes_.back()->start());
    }
    return observations;
  }

  std::vector<EnvironmentStep> step(const std::vector<EpisodeAction>& actions) override {
    std::vector<EnvironmentStep> steps;
    for (const EpisodeAction& action : actions) {
      steps.push_back(at(action.episode)->step(action.text));
      if (!std::isfinite(steps.back().reward)) {
        throw DataError(
            fmt::format("environment: expected a finite reward, got {}", steps.back().reward));
      }
      if (steps.back().done) at(action.episode).reset();
    }
    return steps;
  }

  void end(const std::vector<std::int64_t>& episodes) override {
    for (const std::int64_t episode : episodes) at(episode).reset();
  }

 private:
  std::unique_ptr<Environment>& at(std::int64_t episode) {
    return episodes_.at(static_cast<std::size_t>(episode));
  }

  EnvironmentFactory factory_;
  std::vector<std::unique_ptr<Environment>> episodes_;
};

struct EnvironmentRegistry {
  std::mutex mutex;
  std::vector<EnvironmentEntry> entries = {
      {.name = "guess",
       .description = "a number is to be found, with the hints higher and lower",
       .options = describe_options<GuessOptions>(),
       .make = [](std::string_view json) {
         return make_guess_factory(options_from_json<GuessOptions>(json, "guess"));
       }}};

  const EnvironmentEntry* find(std::string_view name) const {
    const auto found =
        std::find_if(entries.begin(), entries.end(),
                     [&](const EnvironmentEntry& entry) { return entry.name == name; });
    return found == entries.end() ? nullptr : &*found;
  }
};

EnvironmentRegistry& environment_registry() {
  static EnvironmentRegistry instance;
  return instance;
}

EnvironmentEntry find_environment(const std::string& name, std::string_view where) {
  EnvironmentRegistry& all = environment_registry();
  const std::lock_guard lock(all.mutex);
  if (const EnvironmentEntry* entry = all.find(name)) return *entry;
  std::vector<std::string_view> names;
  for (const EnvironmentEntry& entry : all.entries) names.push_back(entry.name);
  throw ConfigError(fmt::format("{}: expected a known environment, got '{}'{}", where,
                                detail::shown_text(name), detail::did_you_mean(name, names)));
}

}  // namespace

std::unique_ptr<Environments> make_environments(EnvironmentFactory factory) {
  return std::make_unique<LocalEnvironments>(std::move(factory));
}

EnvironmentFactory make_environment_factory(std::string_view json, std::string_view where) {
  Json config = detail::parse_json<ConfigError>(json, where);
  if (config.is_string()) config = {{"type", config}};
  if (!config.is_object() || !config.contains("type") || !config["type"].is_string()) {
    throw ConfigError(
        fmt::format("{}: expected the name of an environment, or an object with a key 'type' that "
                    "names one, got {}",
                    where, detail::shown_json(config)));
  }
  const EnvironmentEntry entry = find_environment(config["type"].get<std::string>(), where);
  config.erase("type");
  return entry.make(detail::dump_json(config));
}

std::vector<EnvironmentEntry> registered_environments() {
  EnvironmentRegistry& all = environment_registry();
  const std::lock_guard lock(all.mutex);
  return all.entries;
}

void register_environment(EnvironmentEntry entry) {
  EnvironmentRegistry& all = environment_registry();
  const std::lock_guard lock(all.mutex);
  if (all.find(entry.name) != nullptr) {
    throw ConfigError(
        fmt::format("environment: expected a name that is free, got '{}'", entry.name));
  }
  all.entries.push_back(std::move(entry));
}

}  // namespace prefopt
