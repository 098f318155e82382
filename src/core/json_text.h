// SPDX-License-Identifier: Apache-2.0
#pragma once

// Texts of programs that are no JSON, found in the text before it is parsed.

#include <cstddef>
#include <string>
#include <string_view>

namespace prefopt::detail {

/// Puts NaN, Infinity and -Infinity, which Python's json writes bare, into quotes, led by `mark`,
/// so that they get past a parser. `mark` is written as it is between quotes of JSON.
std::string quote_non_finite(std::string_view json, std::string_view mark = "");

/// Offset of the first escape `\uXXXX` that is one half of a surrogate pair without the other, or
/// npos.
std::size_t find_lone_surrogate(std::string_view json);

/// Each such escape becomes that of U+FFFD.
std::string replace_lone_surrogates(std::string_view json);

}  // namespace prefopt::detail
