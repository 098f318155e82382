// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "data/tokenizers/spec.h"

// Unicode's rules by utf8proc, as the steps of tokenizers need them. Texts are UTF-8.

namespace prefopt::detail {

std::string unicode_form(std::string_view text, const UnicodeForm& form);

/// Returns whether the form is plainly that of the text, from its bytes alone.
bool is_plainly_in_form(std::string_view text, const UnicodeForm& form);

/// Each character by itself, with Unicode's full mapping, as Rust's `char::to_lowercase`.
std::string lowercase(std::string_view text);

/// Drops combining marks (general category M).
std::string without_marks(std::string_view text);

/// `\w` of Rust's regular expressions: letters, marks, decimal digits, connectors, joiners.
bool is_word_character(char32_t code);

/// Returns the end of the grapheme cluster (extended) that begins at `at`.
std::size_t grapheme_end(std::string_view text, std::size_t at);

/// Offset of the first byte that is no white space, from `begin` on.
std::size_t white_space_end(std::string_view text, std::size_t begin);

/// Offset after the last byte that is no white space, before `end` but not before `limit`.
std::size_t white_space_begin(std::string_view text, std::size_t end, std::size_t limit);

/// Returns the offset of the character that ends at `end`, which is not 0.
std::size_t character_before(std::string_view text, std::size_t end);

void append_utf8(char32_t code, std::string& text);

}  // namespace prefopt::detail
