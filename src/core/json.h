// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <concepts>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

namespace prefopt::detail {

using Json = nlohmann::ordered_json;

/// Keys in alphabetical order, found in logarithmic time: for objects of many thousand keys, which
/// the other takes quadratic time for.
using SortedJson = nlohmann::json;

/// Keys that an object of a parsed Json may have.
inline constexpr std::size_t kMaxOrderedKeys = 10'000;

/// Thrown by parse_json_or_throw: the defect without the place.
struct JsonDefect : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Refuses nesting deeper than 64, duplicate keys, which the parser alone lets pass, and in a Json
/// more keys than kMaxOrderedKeys. `Value` is Json or SortedJson.
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

/// Begins the only key of an object in place of a value of a type that JSON lacks, in front
/// of the type's name: see kArrowTypeMark.
inline constexpr std::string_view kTypeMark("\0type: ", 7);

/// "number", "text", "list", "object", "true or false", "null"; in a SortedJson also the name of
/// a type behind kTypeMark.
std::string_view json_type_name(const Json& value);
std::string_view json_type_name(const SortedJson& value);

/// One line; bytes that are not UTF-8 become U+FFFD instead of an exception.
std::string dump_json(const Json& value, int indent = -1);
/// A template, so that braces are a Json.
template <std::same_as<SortedJson> Value>
std::string dump_json(const Value& value, int indent = -1) {
  return value.dump(indent, ' ', false, Value::error_handler_t::replace);
}

/// `text` for an error: a file decides how long it is and what it holds. Its first 300 bytes at
/// most, `printable`.
std::string shown_text(std::string text);

/// dump_json, shortened for an error.
template <class Value>
std::string shown_json(const Value& value) {
  return shown_text(dump_json(value));
}

}  // namespace prefopt::detail
