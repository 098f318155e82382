// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

namespace prefopt::detail {

using Json = nlohmann::ordered_json;

/// Keys in alphabetical order, found in logarithmic time: for objects of many thousand keys, where
/// the other takes quadratic time.
using SortedJson = nlohmann::json;

/// What parse_json_or_throw throws: the defect without the place.
struct JsonDefect : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Refuses nesting deeper than 64 and duplicate keys, which the parser alone lets pass. `Value` is
/// Json or SortedJson.
template <class Value>
Value parse_json_or_throw(std::string_view text);

/// Throws `E` with "where: expected JSON, got …".
template <class E, class Value = Json>
Value parse_json(std::string_view text, std::string_view where) {
  try {
    return parse_json_or_throw<Value>(text);
  } catch (const JsonDefect& defect) {
    throw E(fmt::format("{}: expected JSON, got {}", where, defect.what()));
  }
}

/// "number", "text", "list", "object", "true or false", "null".
std::string_view json_type_name(const Json& value);
std::string_view json_type_name(const SortedJson& value);

/// One line; bytes that are not UTF-8 become U+FFFD instead of an exception.
std::string dump_json(const Json& value, int indent = -1);

}  // namespace prefopt::detail
