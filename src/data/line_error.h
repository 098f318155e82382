// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "data/row_layout.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/records.h"
#include "prefopt/error.h"

namespace prefopt::detail {

class ChatTemplate;

/// The reason why a line gives no row.
enum class LineDefect {
  kMalformed,
  kMissingKey,
  kInvalidUtf8,
  kNotANumber,
  kToolTurn,  ///< of a role that the chat format has no turn for
};

class LineError : public DataError {
 public:
  LineError(LineDefect defect, const std::string& what) : DataError(what), defect_(defect) {}
  LineDefect defect() const { return defect_; }

 private:
  LineDefect defect_;
};

/// The use that a line is read for.
struct LineReading {
  const RowLayout& layout;
  const RowNeeds* needs = nullptr;              ///< null: not known
  bool prompt_alone = false;                    ///< completions may be missing
  std::int64_t context_length = 0;              ///< of the model, in tokens; 0: not known
  const ChatTemplate* chat_template = nullptr;  ///< of chat_template_for_rows
};

/// parse_row under all options. With "auto" as `chat_format` messages need a `chat_template`.
/// Throws LineError where parse_row throws DataError, and leaves columns that nothing reads to
/// `trace`.
PreferenceRow parse_line(std::string_view json, std::string_view where, const DataOptions& options,
                         const LineReading& reading, RowTrace& trace);

/// Throws DataError, led by `where`, for a column of a prompt that nothing reads, unless the option
/// `unused` lets it pass.
void check_unread(const std::vector<UnreadColumn>& unread, const DataOptions& options,
                  std::string_view where);

}  // namespace prefopt::detail
