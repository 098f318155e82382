// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/selection.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "core/json.h"
#include "core/text.h"
#include "online/selections/builtin.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::Json;

template <class S>
SelectionEntry selection_entry() {
  using Options = typename S::Options;
  return {.name = std::string(S::kName),
          .rows = std::string(S::kRows),
          .options = describe_options<Options>(),
          .make = [](std::string_view json, const SourceNames& sources) {
            return std::make_unique<S>(options_from_json<Options>(json, S::kName), sources);
          }};
}

template <class... S>
std::vector<SelectionEntry> entries_of(detail::SelectionList<S...> /*types*/) {
  return {selection_entry<S>()...};
}

struct SelectionRegistry {
  std::mutex mutex;
  std::vector<SelectionEntry> entries = entries_of(detail::BuiltinSelections{});

  const SelectionEntry* find(std::string_view name) const {
    const auto found =
        std::find_if(entries.begin(), entries.end(),
                     [&](const SelectionEntry& entry) { return entry.name == name; });
    return found == entries.end() ? nullptr : &*found;
  }
};

SelectionRegistry& selection_registry() {
  static SelectionRegistry instance;
  return instance;
}

SelectionEntry find_selection(const std::string& name) {
  SelectionRegistry& all = selection_registry();
  const std::lock_guard lock(all.mutex);
  if (const SelectionEntry* entry = all.find(name)) return *entry;
  std::vector<std::string_view> names;
  for (const SelectionEntry& entry : all.entries) names.push_back(entry.name);
  throw ConfigError(fmt::format("select: expected a known selection, got '{}'{}",
                                detail::shown_text(name), detail::did_you_mean(name, names)));
}

}  // namespace

std::unique_ptr<Selection> make_selection(std::string_view json, const SourceNames& sources) {
  Json config = detail::parse_json<ConfigError>(json, "select");
  if (!config.is_object() || !config.contains("type") || !config["type"].is_string()) {
    throw ConfigError(
        fmt::format("select: expected an object with a key 'type' that names a selection, got {}",
                    detail::shown_json(config)));
  }
  const SelectionEntry entry = find_selection(config["type"].get<std::string>());
  config.erase("type");
  return entry.make(detail::dump_json(config), sources);
}

std::vector<SelectionEntry> registered_selections() {
  SelectionRegistry& all = selection_registry();
  const std::lock_guard lock(all.mutex);
  return all.entries;
}

void register_selection(SelectionEntry entry) {
  SelectionRegistry& all = selection_registry();
  const std::lock_guard lock(all.mutex);
  if (all.find(entry.name) != nullptr) {
    throw ConfigError(fmt::format("select: expected a name that is free, got '{}'", entry.name));
  }
  all.entries.push_back(std::move(entry));
}

}  // namespace prefopt
