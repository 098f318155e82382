// SPDX-License-Identifier: Apache-2.0
#include "cli/run_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "core/file.h"
#include "core/json.h"
#include "prefopt/error.h"
#include "prefopt/options.h"

namespace prefopt::cli {
namespace {

using detail::Json;

const std::vector<FieldDoc>& run_options() {
  static const std::vector<FieldDoc> kOptions = describe_options<RunOptions>();
  return kOptions;
}

/// Returns where the option of a former place is now; any other path as it is.
std::string present_place(const std::string& path) {
  for (const FieldDoc& option : run_options()) {
    const bool was_there =
        path.find('.') != std::string::npos &&
        std::find(option.aliases.begin(), option.aliases.end(), path) != option.aliases.end();
    if (was_there) return option.name;
  }
  return path;
}

/// Returns the type of the option of this path, by its name or an alias, if it may be a text; else
/// an empty one.
std::string_view text_type_of(const std::string& path) {
  const auto dot = path.rfind('.');
  const std::string group = dot == std::string::npos ? "" : path.substr(0, dot + 1);
  const std::string last = path.substr(group.size());
  const auto& options = run_options();
  const auto found = std::find_if(options.begin(), options.end(), [&](const FieldDoc& option) {
    if (!option.type.starts_with("text") || !option.name.starts_with(group)) return false;
    const std::string name = option.name.substr(group.size());
    if (name.find('.') != std::string::npos) return false;
    return name == last ||
           std::find(option.aliases.begin(), option.aliases.end(), last) != option.aliases.end();
  });
  return found == options.end() ? std::string_view() : found->type;
}

// A value is JSON where it can be read as such, else text: `--set data.train=rows.jsonl`. An option
// that is a text takes any value as it is written, as `--set output_dir=2024`, but a JSON text, or
// a JSON list where it may be one.
Json set_value(const std::string& path, const std::string& text, const std::string& where) {
  if (!Json::accept(text)) return text;
  const char first = text[text.find_first_not_of(" \t\r\n")];
  const std::string_view type = text_type_of(path);
  const bool is_json = first == '"' || (first == '[' && type == "text or list");
  if (!type.empty() && !is_json) return text;
  return detail::parse_json<ConfigError>(text, where);
}

// `a.b=value` makes {"a": {"b": value}} of whatever was there.
void apply_set(const std::string& set, Json& config) {
  const auto equals = set.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw ConfigError(fmt::format("--set: expected KEY=VALUE, got '{}'", set));
  }
  const std::string path = present_place(set.substr(0, equals));
  const std::string where = "--set " + path;
  Json* object = &config;
  std::size_t begin = 0;
  for (auto dot = path.find('.'); dot != std::string::npos; dot = path.find('.', begin)) {
    const std::string key = path.substr(begin, dot - begin);
    Json& inner = (*object)[key];
    if (inner.is_null()) inner = Json::object();
    if (!inner.is_object()) {
      throw ConfigError(fmt::format("{}: expected {} to be an object, got {}", where,
                                    path.substr(0, dot), detail::shown_json(inner)));
    }
    object = &inner;
    begin = dot + 1;
  }
  (*object)[path.substr(begin)] = set_value(path, set.substr(equals + 1), where);
}

}  // namespace

RunOptions read_run_config(const std::string& path, const std::vector<std::string>& sets,
                           std::vector<std::string>& moves) {
  const std::string text = path.empty() ? "{}" : detail::read_file<ConfigError>(path);
  Json config =
      detail::parse_json<ConfigError>(move_former_options<RunOptions>(text, path, &moves), path);
  for (const std::string& set : sets) apply_set(set, config);
  const std::string_view with_sets = sets.empty() ? "" : path.empty() ? "--set" : " with --set";
  return options_from_json<RunOptions>(detail::dump_json(config),
                                       fmt::format("{}{}: config", path, with_sets));
}

}  // namespace prefopt::cli
