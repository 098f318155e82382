// SPDX-License-Identifier: Apache-2.0
#include "decoder/strict_config.h"

#include <fmt/format.h>

#include <limits>

#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt::detail {

bool KnownFields::contain(std::string_view name) const {
  const auto is_it = [&](const RequiredValue& field) { return field.name == name; };
  return contains(understood, name) || contains(harmless, name) ||
         std::any_of(required.begin(), required.end(), is_it);
}

void StrictFile::fail(std::string_view expected, std::string_view got) const {
  throw CheckpointError(fmt::format("{}: expected {}, got {}", path_, expected, got));
}

void StrictFile::check_required(std::string_view name, const Json& required,
                                const Json& given) const {
  if (given == required) return;
  fail(fmt::format("{} to be {}", name, shown_json(required)), shown_json(given));
}

StrictConfig::StrictConfig(const Json& json, std::string path)
    : StrictFile(std::move(path)), json_(json) {
  if (!json.is_object()) fail("an object", json_type_name(json));
}

void StrictConfig::check(const KnownFields& known) const {
  for (const auto& item : json_.items()) {
    if (known.contain(item.key()) || says_nothing(item.value())) continue;
    fail("fields that this decoder understands",
         fmt::format("'{}': {}", item.key(), shown_json(item.value())));
  }
  for (const auto& [name, value] : known.required) {
    if (const Json* given = find(name)) check_required(name, value, *given);
  }
}

const Json* StrictConfig::find(std::string_view name) const {
  const auto at = json_.find(std::string(name));
  return at == json_.end() || at->is_null() ? nullptr : &*at;
}

std::int64_t StrictConfig::size(std::string_view name, std::optional<std::int64_t> absent) const {
  const Json* given = find(name);
  if (!given && absent) return *absent;
  if (!given) fail(name, "none");
  const std::int64_t value = whole(name, *given);
  if (value < 1) fail(fmt::format("{} of at least 1", name), shown_json(*given));
  if (value > kMaxDecoderSize) {
    fail(fmt::format("{} of at most {}", name, kMaxDecoderSize), shown_json(*given));
  }
  return value;
}

double StrictConfig::number(std::string_view name, double absent) const {
  const Json* given = find(name);
  if (!given) return absent;
  if (!given->is_number()) fail(fmt::format("{} to be a number", name), shown_json(*given));
  return given->get<double>();
}

bool StrictConfig::flag(std::string_view name, bool absent) const {
  const Json* given = find(name);
  if (!given) return absent;
  if (!given->is_boolean()) fail(fmt::format("{} to be true or false", name), shown_json(*given));
  return given->get<bool>();
}

std::int64_t StrictConfig::whole(std::string_view name, const Json& given) const {
  const bool fits = given.is_number_integer() &&
                    !(given.is_number_unsigned() &&
                      given.get<std::uint64_t>() >
                          static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
  if (!fits) fail(fmt::format("{} to be a whole number", name), shown_json(given));
  return given.get<std::int64_t>();
}

std::int64_t StrictConfig::token(std::string_view name) const {
  const Json* given = find(name);
  return given ? whole(name, *given) : -1;
}

std::vector<std::int64_t> StrictConfig::tokens(std::string_view name) const {
  const Json* given = find(name);
  if (!given) return {};
  return token_list(*given, [&](const Json& id) {
    const std::int64_t value = whole(name, id);
    const bool fits = value >= (given->is_array() ? 0 : -1) && value <= kMaxDecoderSize;
    if (!fits) fail(fmt::format("{} in [0, {}]", name, kMaxDecoderSize), shown_json(*given));
    return value;
  });
}

bool says_nothing(const Json& value) {
  return value.is_null() || value == false || value == "" ||
         (value.is_structured() && value.empty());
}

}  // namespace prefopt::detail
