// SPDX-License-Identifier: Apache-2.0
#pragma once

// The methods of Python's str, on texts that know the origin of their bytes.

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "jinja/text.h"

namespace prefopt::jinja {

/// str.isspace() of one character.
bool is_space(char32_t code);

/// Cases. Throw Failure for letters whose other case is several letters or depends on others,
/// except for ß.
Text upper(const Text& text);
Text lower(const Text& text);
Text capitalize(const Text& text);
Text swap_case(const Text& text);
/// str.title(): after anything but a letter there is a capital.
Text title(const Text& text);
/// The filter `title`: after white space, hyphens and opening brackets there is a capital.
Text title_of_words(const Text& text);

enum class Side { kLeft = 1, kRight = 2, kBoth = 3 };
/// `characters` null: white space.
Text strip(const Text& text, Side side, const Text* characters = nullptr);

/// `limit` below 0: as many as there are. Without a separator runs of white space part the words.
std::vector<Text> split(const Text& text, const Text* separator, std::int64_t limit);
std::vector<Text> split_from_right(const Text& text, const Text* separator, std::int64_t limit);
std::vector<Text> split_lines(const Text& text, bool keep_ends);

Text replace(const Text& text, const Text& old, const Text& other, std::int64_t limit);
Text join(const Text& separator, const std::vector<Text>& parts);
Text reversed(const Text& text);
/// HTML: & < > ' and ".
Text escaped(const Text& text);

/// `fill` is one character. Widths are in characters.
Text padded_left(const Text& text, std::int64_t width, std::string_view fill);
Text padded_right(const Text& text, std::int64_t width, std::string_view fill);
Text centered(const Text& text, std::int64_t width, std::string_view fill);

/// Returns the number of words, of letters, digits and underscores.
std::int64_t count_words(const Text& text);

enum class CharacterClass { kAlnum, kAlpha, kAscii, kDigit, kLower, kSpace, kTitle, kUpper };
/// str.isalnum() and so on.
bool is_of(const Text& text, CharacterClass kind);

}  // namespace prefopt::jinja
