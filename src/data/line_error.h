// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "prefopt/data/records.h"
#include "prefopt/error.h"

namespace prefopt::detail {

/// Why a line gives no row.
enum class LineDefect { kMalformed, kMissingKey, kInvalidUtf8 };

class LineError : public DataError {
 public:
  LineError(LineDefect defect, const std::string& what) : DataError(what), defect_(defect) {}
  LineDefect defect() const { return defect_; }

 private:
  LineDefect defect_;
};

/// parse_row that throws LineError where it throws DataError.
PreferenceRow parse_line(std::string_view json, std::string_view where,
                         std::string_view chat_format);

}  // namespace prefopt::detail
