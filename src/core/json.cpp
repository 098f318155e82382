// SPDX-License-Identifier: Apache-2.0
#include "core/json.h"

#include <set>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/text.h"

namespace prefopt::detail {
namespace {

constexpr int kMaxDepth = 64;

// Returns the part of the parser's message after its exception id and position.
std::string short_reason(const nlohmann::json::exception& error) {
  std::string text = error.what();
  if (const auto id_end = text.find("] "); id_end != std::string::npos) text.erase(0, id_end + 2);
  return shown_text(std::move(text));
}

std::string_view type_name(nlohmann::json::value_t type) {
  using Type = nlohmann::json::value_t;
  switch (type) {
    case Type::null:
      return "null";
    case Type::object:
      return "object";
    case Type::array:
      return "list";
    case Type::string:
      return "text";
    case Type::boolean:
      return "true or false";
    default:
      return "number";
  }
}

}  // namespace

template <class Value>
Value parse_json_or_throw(std::string_view text) {
  using Event = typename Value::parse_event_t;
  std::vector<std::set<std::string>> keys_by_level;
  const auto check = [&](int depth, Event event, Value& parsed) {
    switch (event) {
      case Event::object_start:
      case Event::array_start:
        if (depth >= kMaxDepth) {
          throw JsonDefect(fmt::format("nesting deeper than {} levels", kMaxDepth));
        }
        keys_by_level.emplace_back();
        break;
      case Event::object_end:
      case Event::array_end:
        keys_by_level.pop_back();
        break;
      case Event::key: {
        std::set<std::string>& keys = keys_by_level.back();
        if (!keys.insert(parsed.template get<std::string>()).second) {
          throw JsonDefect(
              fmt::format("the key '{}' twice", shown_text(parsed.template get<std::string>())));
        }
        if (std::is_same_v<Value, Json> && keys.size() > kMaxOrderedKeys) {
          throw JsonDefect(fmt::format("an object of more than {} keys", kMaxOrderedKeys));
        }
        break;
      }
      case Event::value:
        break;
    }
    return true;
  };
  try {
    return Value::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    throw JsonDefect(fmt::format("something else: {}", short_reason(error)));
  }
}

template Json parse_json_or_throw<Json>(std::string_view text);
template SortedJson parse_json_or_throw<SortedJson>(std::string_view text);

std::string_view json_type_name(const Json& value) { return type_name(value.type()); }

std::string_view json_type_name(const SortedJson& value) {
  if (!value.is_object() || value.size() != 1) return type_name(value.type());
  const std::string_view key = value.begin().key();
  return key.starts_with(kTypeMark) ? key.substr(kTypeMark.size()) : type_name(value.type());
}

std::string dump_json(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

std::string shown_text(std::string text) {
  constexpr std::size_t kMostBytes = 300;
  const bool fits = text.size() <= kMostBytes;
  if (!fits) {
    std::size_t end = kMostBytes;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    text.resize(end);
  }
  text = printable(text);
  return fits ? text : text + "…";
}

}  // namespace prefopt::detail
