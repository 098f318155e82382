// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

namespace prefopt::detail {

using Json = nlohmann::ordered_json;

/// What parse_json_or_throw throws: the defect without the place.
struct JsonDefect : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Refuses nesting deeper than 64 and duplicate keys, which the parser alone lets pass.
Json parse_json_or_throw(std::string_view text);

/// Throws `E` with "where: expected JSON, got …".
template <class E>
Json parse_json(std::string_view text, std::string_view where) {
  try {
    return parse_json_or_throw(text);
  } catch (const JsonDefect& defect) {
    throw E(fmt::format("{}: expected JSON, got {}", where, defect.what()));
  }
}

/// "number", "text", "list", "object", "true or false", "null".
std::string_view json_type_name(const Json& value);

/// One line; bytes that are not UTF-8 become U+FFFD instead of an exception.
std::string dump_json(const Json& value, int indent = -1);

}  // namespace prefopt::detail
