// SPDX-License-Identifier: Apache-2.0
#pragma once

// Columns of a row that nothing reads, and whether their text is lost.

#include <set>
#include <string>
#include <string_view>

#include "core/json.h"
#include "data/row_layout.h"

namespace prefopt::detail {

/// Returns whether `text`, a prompt that was given twice, is in the turns before the answer: as one
/// of them, as a part of one, or as all of them written out with nothing else.
bool is_repeated(std::string_view text, const SortedJson& list);

struct ReadRow {
  const SortedJson& row;              ///< all of its columns
  const SortedJson& texts;            ///< what was made of it, under the canonical keys
  const std::set<std::string>& used;  ///< columns that it was made of
  bool lacks_prompt;                  ///< but for what the answers begin with alike
};

/// Names the columns with text that nothing reads. Of those that are or could be parts of the
/// prompt, which `doubtful` is told, only the ones whose text the prompt has not.
void note_unread_columns(const ReadRow& read, std::set<std::string>& doubtful, RowTrace& trace);

/// Names one of them, once.
void note_unread_column(const std::string& name, std::string_view key,
                        const std::set<std::string>& doubtful, RowTrace& trace);

}  // namespace prefopt::detail
