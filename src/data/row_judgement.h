// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "data/row_preparation.h"
#include "prefopt/data/dataset.h"

namespace prefopt::detail {

/// Returns whether the policies of the options keep a row of `path`, and counts it in `report`.
/// Throws what ended its reading, and DataError where a policy asks for it.
bool judge_row(const std::string& path, std::int64_t line, const DataOptions& options,
               const PreparedRow& row, RowReport& report);

void count_cuts(const Cuts& cuts, std::int64_t line, RowReport& report);

}  // namespace prefopt::detail
