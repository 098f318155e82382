// SPDX-License-Identifier: Apache-2.0
#include "data/row_layout.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "core/json_text.h"
#include "core/text.h"
#include "data/line_error.h"
#include "data/row_columns.h"
#include "data/row_json.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

constexpr std::array<std::pair<std::string_view, std::string_view>, 4> kRoleFields{
    {{"user", "user"},
     {"assistant", "assistant"},
     {"system_role", "system"},
     {"tool_role", "tool"}}};

/// In lower case.
constexpr std::array<std::pair<std::string_view, std::string_view>, 18> kKnownRoles{
    {{"system", "system"},
     {"developer", "system"},
     {"user", "user"},
     {"human", "user"},
     {"prompter", "user"},
     {"assistant", "assistant"},
     {"gpt", "assistant"},
     {"chatgpt", "assistant"},
     {"bot", "assistant"},
     {"model", "assistant"},
     {"ai", "assistant"},
     {"chatbot", "assistant"},
     {"tool", "tool"},
     {"observation", "tool"},
     {"function_response", "tool"},
     {"function", "tool"},
     {"ipython", "tool"},
     {"tool_response", "tool"}}};

std::vector<std::string> names_in(const Json& value, std::string_view where,
                                  std::string_view field) {
  const auto is_name = [](const Json& item) {
    return item.is_string() && !item.get_ref<const std::string&>().empty();
  };
  if (is_name(value)) return {value.get<std::string>()};
  if (!value.is_array() || value.empty() || !std::all_of(value.begin(), value.end(), is_name)) {
    throw ConfigError(fmt::format("{}: expected {} to be a name or a list of names, got {}", where,
                                  field, shown_json(value)));
  }
  return value.get<std::vector<std::string>>();
}

}  // namespace

RowLayout::RowLayout(std::string_view columns, std::string_view where)
    : role_keys_{"role", "from"}, content_keys_{"content", "value"} {
  const Json given = parse_json<ConfigError>(columns, where);
  if (given.is_string()) {
    preset_ = given.get<std::string>();
    const auto names = preset_names();
    if (!is_among(names, preset_)) {
      throw ConfigError(fmt::format("{}: expected the columns of fields or one of {}, got '{}'{}",
                                    where, fmt::join(names, ", "), shown_text(preset_),
                                    did_you_mean(preset_, names)));
    }
    return;
  }
  if (!given.is_object()) {
    throw ConfigError(fmt::format("{}: expected a preset's name or the columns of fields, got {}",
                                  where, shown_json(given)));
  }
  std::vector<std::string_view> fields(kColumnFields.begin(), kColumnFields.end());
  fields.insert(fields.end(), {"role_key", "content_key"});
  for (const auto& role : kRoleFields) fields.push_back(role.first);
  for (const auto& [field, value] : given.items()) {
    if (is_among(kColumnFields, field)) {
      if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
        throw ConfigError(fmt::format("{}: expected {} to be the name of a column, got {}", where,
                                      field, shown_json(value)));
      }
      mapping_.emplace_back(field, value.get<std::string>());
      continue;
    }
    const auto role =
        std::find_if(kRoleFields.begin(), kRoleFields.end(),
                     [&, &field = field](const auto& known) { return known.first == field; });
    if (role == kRoleFields.end() && field != "role_key" && field != "content_key") {
      throw ConfigError(fmt::format("{}: expected a known field, got '{}'{}", where,
                                    shown_text(field), did_you_mean(field, fields)));
    }
    for (const std::string& name : names_in(value, where, field)) {
      if (role == kRoleFields.end()) {
        auto& keys = field == "role_key" ? role_keys_ : content_keys_;
        keys.insert(keys.begin(), name);
      } else if (!roles_.emplace(name, role->second).second) {
        throw ConfigError(
            fmt::format("{}: expected each role once, got '{}' twice", where, shown_text(name)));
      }
    }
  }
}

bool RowLayout::maps(std::string_view field) const {
  return std::any_of(mapping_.begin(), mapping_.end(),
                     [&](const auto& mapped) { return mapped.first == field; });
}

std::string RowLayout::role_of(std::string_view name) const {
  if (const auto own = roles_.find(name); own != roles_.end()) return own->second;
  const std::string lower = lower_case(name);
  const auto known = std::find_if(kKnownRoles.begin(), kKnownRoles.end(),
                                  [&](const auto& role) { return role.first == lower; });
  return std::string(known == kKnownRoles.end() ? name : known->second);
}

SortedJson parse_line_json(std::string_view json, std::string_view where) {
  constexpr std::string_view kMark = R"(\u0000prefopt: )";
  constexpr std::string_view kParsedMark("\0prefopt: ", 10);
  const auto has = [&](std::string_view part) { return json.find(part) != std::string_view::npos; };
  // Few lines hold these words at all.
  const bool mends = (has("NaN") || has("Infinity")) && !has(kMark);
  SortedJson row;
  try {
    row = parse_json_or_throw<SortedJson>(mends ? quote_non_finite(json, kMark) : json);
  } catch (const JsonDefect& defect) {
    throw LineError(LineDefect::kMalformed,
                    fmt::format("{}: expected JSON, got {}", where, defect.what()));
  }
  if (!row.is_object()) {
    throw LineError(LineDefect::kMalformed,
                    fmt::format("{}: expected an object, got {}", where, json_type_name(row)));
  }
  if (!mends) return row;
  const auto mend = [&](auto&& self, SortedJson& value) -> void {
    if (value.is_structured()) {
      for (SortedJson& inner : value) self(self, inner);
    } else if (value.is_string() && value.get_ref<const std::string&>().starts_with(kParsedMark)) {
      value = std::nan("");
    }
  };
  mend(mend, row);
  return row;
}

}  // namespace prefopt::detail
