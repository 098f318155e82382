// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "prefopt/data/dataset.h"
#include "prefopt/data/records.h"
#include "prefopt/error.h"

namespace prefopt::detail {

/// Why a line gives no row.
enum class LineDefect {
  kMalformed,
  kMissingKey,
  kInvalidUtf8,
  kToolTurn,  ///< of a role that the chat format has no turn for
};

class LineError : public DataError {
 public:
  LineError(LineDefect defect, const std::string& what) : DataError(what), defect_(defect) {}
  LineDefect defect() const { return defect_; }

 private:
  LineDefect defect_;
};

/// parse_row under all options, whose `chat_format` has to be a format, not "auto". Throws
/// LineError where parse_row throws DataError.
PreferenceRow parse_line(std::string_view json, std::string_view where, const DataOptions& options);

}  // namespace prefopt::detail
