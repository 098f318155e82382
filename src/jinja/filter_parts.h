// SPDX-License-Identifier: Apache-2.0
#pragma once

// The filters, by what they take.

#include <string_view>

#include "jinja/filters.h"

namespace prefopt::jinja {

struct FilterEntry {
  std::string_view name;
  Filter call;
};

// Null for a name of another kind.
Filter find_text_filter(std::string_view name);
Filter find_list_filter(std::string_view name);

/// Returns the item at a dotted path, as jinja2's make_attrgetter does; `path` may be a number.
Value item_at(const Value& value, const Value& path);

template <class Entries>
Filter find_in(const Entries& entries, std::string_view name) {
  for (const FilterEntry& entry : entries) {
    if (entry.name == name) return entry.call;
  }
  return nullptr;
}

}  // namespace prefopt::jinja
