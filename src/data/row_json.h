// SPDX-License-Identifier: Apache-2.0
#pragma once

// Small queries of the values of a row.

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>

#include "core/json.h"

namespace prefopt::detail {

template <class Names>
bool is_among(const Names& names, std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool is_blank_text(const SortedJson& value);
bool holds_non_finite(const SortedJson& value);
/// Returns whether the value holds a text that is not blank.
bool holds_text(const SortedJson& value);

/// Of ASCII.
std::string lower_case(std::string_view name);
void erase_nulls(SortedJson& object);

SortedJson message_of(std::string_view role, std::string_view content);
/// Empty where there is no text.
std::string_view text_at(const SortedJson& message, const char* key);
/// Returns the role of a list's last or first message.
std::string_view role_at(const SortedJson& list, bool last);
/// Without outer white space.
std::string_view content_of(const SortedJson& message);
bool asks_first(const SortedJson& list);

}  // namespace prefopt::detail
