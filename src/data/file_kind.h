// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "data/arrow_module.h"

namespace prefopt::detail {

/// How a file that is not read becomes one that is.
inline constexpr std::string_view kAsLines =
    "write its rows as JSON lines, as pandas' to_json(orient='records', lines=True) does";

/// Returns the kind of a file that Arrow reads, by what it begins with.
std::optional<ArrowKind> arrow_kind_of(std::string_view head);

/// Throws DataError for a file that is known to hold no JSON, which it names.
void check_kind_of_file(const std::string& path, std::string_view head);

}  // namespace prefopt::detail
