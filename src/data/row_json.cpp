// SPDX-License-Identifier: Apache-2.0
#include "data/row_json.h"

#include <cmath>

#include "data/row_words.h"

namespace prefopt::detail {
namespace {

bool is_non_finite(const SortedJson& value) {
  return value.is_number_float() && !std::isfinite(value.get<double>());
}

}  // namespace

bool is_blank_text(const SortedJson& value) {
  return value.is_string() && stripped(value.get_ref<const std::string&>()).empty();
}

bool holds_non_finite(const SortedJson& value) {
  return is_non_finite(value) ||
         (value.is_structured() && std::any_of(value.begin(), value.end(), holds_non_finite));
}

bool holds_text(const SortedJson& value) {
  if (value.is_string()) return !is_blank_text(value);
  return value.is_structured() && std::any_of(value.begin(), value.end(), holds_text);
}

std::string lower_case(std::string_view name) {
  std::string text(name);
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

void erase_nulls(SortedJson& object) {
  for (auto item = object.begin(); item != object.end();) {
    item = item->is_null() ? object.erase(item) : std::next(item);
  }
}

SortedJson message_of(std::string_view role, std::string_view content) {
  return {{"role", role}, {"content", content}};
}

std::string_view text_at(const SortedJson& message, const char* key) {
  if (!message.is_object()) return {};
  const auto value = message.find(key);
  return value != message.end() && value->is_string()
             ? std::string_view(value->get_ref<const std::string&>())
             : std::string_view();
}

std::string_view role_at(const SortedJson& list, bool last) {
  if (!list.is_array() || list.empty()) return {};
  return text_at(last ? list.back() : list.front(), "role");
}

std::string_view content_of(const SortedJson& message) {
  return stripped(text_at(message, "content"));
}

bool asks_first(const SortedJson& list) {
  const std::string_view role = role_at(list, /*last=*/false);
  return role == "system" || role == "user";
}

}  // namespace prefopt::detail
