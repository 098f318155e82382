// SPDX-License-Identifier: Apache-2.0
#pragma once

// How the columns of others' files become the keys that records.cpp reads.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"

namespace prefopt::detail {

/// A column with text that nothing in the row is made of.
struct UnreadColumn {
  std::string name;        ///< `system`, `input.notes`, `chosen[].images`
  bool is_prompt = false;  ///< known to be a part of prompts, or it could be the prompt
};

/// The remarks on the columns of one row.
struct RowTrace {
  std::vector<UnreadColumn> unread;
  std::vector<std::string> read;     ///< columns that the texts are made of
  std::vector<std::string> answers;  ///< columns with a completion
  /// The columns that keys of the canonical row were read from, where these have another name.
  std::map<std::string, std::string, std::less<>> columns;
  std::uint64_t found = 0;     ///< bit i: the row has the column of mapping()[i]
  bool assumes_label = false;  ///< RowUse::kAny read a conversation as kLabelled

  /// Returns the name that the row's file has for a key of the canonical row.
  std::string_view column_of(std::string_view key) const {
    const auto found = columns.find(key);
    return found == columns.end() ? key : std::string_view(found->second);
  }
};

/// The part of a row that is wanted.
enum class RowUse {
  kAny,    ///< not known: a conversation with a label is read as kLabelled
  kWhole,  ///< all of it
  /// A prompt and one completion with a label: a conversation is cut before its last answer.
  kLabelled,
  kPrompt,  ///< the prompt alone: completions may be missing
};

/// The content of `data.columns`: a preset's name, or the columns of fields. Everything else is
/// recognized by its keys.
class RowLayout {
 public:
  /// Throws ConfigError, led by `where`, for an unknown preset or field (naming the nearest) or a
  /// wrong type.
  explicit RowLayout(std::string_view columns = "{}", std::string_view where = "data.columns");

  /// Returns the row under the keys prompt, chosen, rejected, gold, completion, messages, text,
  /// tools and those of kColumnKeys, all of its other columns left as they are. Texts stay texts
  /// where the row is plain text, else there are lists of {role, content, …}: a question, an
  /// instruction or a system text make a conversation. A null is an absent key. A row of no known
  /// layout is left as it is. A message that its file leaves out of training has "train": false,
  /// one that holds reasoning has "reasoning_content". Throws LineError, led by `where`; `trace`
  /// names the columns for further errors.
  SortedJson canonical(SortedJson row, std::string_view where, RowUse use, RowTrace& trace) const;

  /// Returns the column that the mapping gives for each field that it names.
  const std::vector<std::pair<std::string, std::string>>& mapping() const { return mapping_; }
  bool maps(std::string_view field) const;

  /// Returns user, assistant, system or tool for a role in a file; any other role unchanged.
  std::string role_of(std::string_view name) const;
  const std::vector<std::string>& role_keys() const { return role_keys_; }
  const std::vector<std::string>& content_keys() const { return content_keys_; }

  /// Empty: none.
  const std::string& preset() const { return preset_; }

 private:
  std::string preset_;
  std::vector<std::pair<std::string, std::string>> mapping_;
  std::vector<std::string> role_keys_, content_keys_;
  std::map<std::string, std::string, std::less<>> roles_;  // as the mapping spells them
};

/// Returns the object of a line. NaN and infinities, which Python's json writes bare, become
/// numbers that are not finite. Throws LineError, led by `where`.
SortedJson parse_line_json(std::string_view json, std::string_view where);

}  // namespace prefopt::detail
