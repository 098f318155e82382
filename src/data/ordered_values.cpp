// SPDX-License-Identifier: Apache-2.0
#include "data/ordered_values.h"

#include "core/json_text.h"

namespace prefopt::detail {

OrderedValues::OrderedValues(std::string_view line) {
  add(parse_json_or_throw<Json>(quote_non_finite(line)));
}

void OrderedValues::add(const Json& value) {
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    if (!text.starts_with('[') && !text.starts_with('{')) return;
    try {
      add(parse_json_or_throw<Json>(text));
    } catch (const JsonDefect&) {  // a text that only begins so
    }
    return;
  }
  if (!value.is_structured()) return;
  for (const Json& inner : value) add(inner);
  if (!value.is_object()) return;
  const auto [place, is_new] = objects_.try_emplace(dump_json(SortedJson(value)), Known{value});
  if (!is_new && dump_json(place->second.value) != dump_json(value)) {
    place->second.is_ambiguous = true;
  }
}

Json OrderedValues::ordered(const SortedJson& value) const {
  if (value.is_array()) {
    Json list = Json::array();
    for (const SortedJson& inner : value) list.push_back(ordered(inner));
    return list;
  }
  if (!value.is_object()) return Json(value);
  const auto known = objects_.find(dump_json(value));
  if (known != objects_.end()) {
    if (known->second.is_ambiguous) throw JsonDefect("one object with its keys in two orders");
    return known->second.value;
  }
  Json object = Json::object();
  for (const auto& [key, inner] : value.items()) object[key] = ordered(inner);
  return object;
}

}  // namespace prefopt::detail
