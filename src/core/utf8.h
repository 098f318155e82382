// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace prefopt::detail {

struct Utf8Character {
  char32_t code = 0;       ///< U+FFFD where it is not `valid`
  std::size_t length = 0;  ///< bytes; of what is no UTF-8, those that could begin a character
  bool valid = false;
};

/// Returns the character at `at`, which has to lie in `text`.
Utf8Character utf8_character(std::string_view text, std::size_t at);

/// Offset of the first byte that is no UTF-8, or npos.
std::size_t find_invalid_utf8(std::string_view text);

/// Each part that is no UTF-8 becomes U+FFFD, cut as Unicode recommends (chapter 3.9, "maximal
/// subparts") and as Python's errors="replace" and Rust's from_utf8_lossy do.
std::string replace_invalid_utf8(std::string_view text);

/// Unicode's property White_Space.
bool is_white_space(char32_t code);

}  // namespace prefopt::detail
