// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "data/arrow_module.h"
#include "data/row_file.h"

namespace prefopt::detail {

/// Returns "a Parquet file", "an Arrow file" or "an Arrow stream".
std::string_view arrow_kind_name(ArrowKind kind);

/// Opens a file through Arrow. Rows are numbered from 1. Throws DataError for a damaged file, and
/// where this build has no module for it or cannot load it.
std::unique_ptr<RowFile> open_arrow_rows(const std::string& path, ArrowKind kind);

}  // namespace prefopt::detail
