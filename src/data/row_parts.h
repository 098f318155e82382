// SPDX-License-Identifier: Apache-2.0
#pragma once

// The columns of a row by their fields, and its messages under one set of keys.

#include <fmt/format.h>

#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "data/line_error.h"
#include "data/row_columns.h"
#include "data/row_layout.h"

namespace prefopt::detail {

/// A column, or what a dotted path leads to; without a value if there is none.
struct FoundColumn {
  std::string path;
  const SortedJson* value = nullptr;
  explicit operator bool() const { return value != nullptr; }
};

class RowParts {
 protected:
  RowParts(const RowLayout& layout, SortedJson row, std::string_view where, RowUse use,
           RowTrace& trace);
  ~RowParts() = default;

  template <class... Args>
  [[noreturn]] void fail(LineDefect defect, fmt::format_string<Args...> format,
                         Args&&... args) const {
    throw LineError(
        defect, fmt::format("{}: {}", where_, fmt::format(format, std::forward<Args>(args)...)));
  }
  void check_finite(std::string_view name, const SortedJson& value) const;

  FoundColumn at_path(const std::string& path) const;
  void find_mapped();
  /// Finds a pair in its own object, the only one of the row.
  void find_nested();
  /// Returns the column of a field: the one of the mapping, else the first of these names.
  FoundColumn find(std::string_view field, std::initializer_list<const char*> names) const;
  FoundColumn find(const char* name) const { return find(name, {name}); }
  /// Returns a column that no field names.
  FoundColumn foreign(const char* name) const;
  const SortedJson& needed(const char* name);
  bool maps_any(std::initializer_list<std::string_view> fields) const;
  std::string text_of(const FoundColumn& found) const;

  std::string joined_parts(const SortedJson& parts, const std::string& path) const;
  /// {"name": …, "arguments": …} as text, or a list of such, of a turn that calls functions.
  SortedJson called_functions(const std::string& text, const std::string& path) const;
  SortedJson message(const SortedJson& given, const std::string& path);
  /// Returns whether the file wants the turn to be trained on. Removes the keys that say so. Throws
  /// LineError for an answer that counts in part.
  bool trains(SortedJson& message, const std::string& path, bool is_answer) const;
  bool has_null_content(const SortedJson& message) const;
  /// Messages as a list, texts and everything else as they are.
  SortedJson turns(const SortedJson& value, const std::string& path);
  void note_unread(const std::string& name, std::string_view key);

  const RowLayout& layout_;
  SortedJson row_;
  const std::string_view where_;
  const RowUse use_;
  RowTrace& trace_;
  const Preset* preset_ = nullptr;
  std::map<std::string, FoundColumn, std::less<>> mapped_;
  std::set<std::string, std::less<>> taken_;  // columns of the mapping
  std::set<std::string> used_;                // columns that the row is made of
  std::set<std::string> doubtful_;            // columns that could be the prompt, and are not read
};

}  // namespace prefopt::detail
