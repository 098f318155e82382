// SPDX-License-Identifier: Apache-2.0
#include "core/json.h"

#include <set>
#include <vector>

namespace prefopt::detail {
namespace {

constexpr int kMaxDepth = 64;

// The part of the parser's message after its exception id and position.
std::string short_reason(const nlohmann::json::exception& error) {
  std::string text = error.what();
  if (const auto id_end = text.find("] "); id_end != std::string::npos) text.erase(0, id_end + 2);
  return text;
}

}  // namespace

Json parse_json_or_throw(std::string_view text) {
  std::vector<std::set<std::string>> keys_by_level;
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (depth >= kMaxDepth) {
          throw JsonDefect(fmt::format("nesting deeper than {} levels", kMaxDepth));
        }
        keys_by_level.emplace_back();
        break;
      case Json::parse_event_t::object_end:
      case Json::parse_event_t::array_end:
        keys_by_level.pop_back();
        break;
      case Json::parse_event_t::key:
        if (!keys_by_level.back().insert(parsed.get<std::string>()).second) {
          throw JsonDefect(fmt::format("the key '{}' twice", parsed.get<std::string>()));
        }
        break;
      case Json::parse_event_t::value:
        break;
    }
    return true;
  };
  try {
    return Json::parse(text, check);
  } catch (const Json::exception& error) {
    throw JsonDefect(fmt::format("something else: {}", short_reason(error)));
  }
}

std::string_view json_type_name(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "object";
    case Json::value_t::array:
      return "list";
    case Json::value_t::string:
      return "text";
    case Json::value_t::boolean:
      return "true or false";
    default:
      return "number";
  }
}

std::string dump_json(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace prefopt::detail
