// SPDX-License-Identifier: Apache-2.0
#pragma once

// Comparison of the texts of rows: which of them say the same.

#include <cstddef>
#include <optional>
#include <string_view>

namespace prefopt::detail {

/// Returns `text` without outer white space, as Python's str.strip() and Jinja's trim leave it.
std::string_view stripped(std::string_view text);
/// Returns the same of one end.
std::string_view stripped_before(std::string_view text);
std::string_view stripped_after(std::string_view text);

/// Counts runs of characters between white space.
std::size_t count_words(std::string_view text);

/// Returns whether a text is so long that another one holds it on purpose, not by chance.
bool is_telling(std::string_view text);

/// Returns the rest of a text that begins with `prompt`, whatever white space is around it; nothing
/// if it does not, or if `prompt` is blank.
std::optional<std::string_view> after_prompt(std::string_view text, std::string_view prompt);

/// Returns the place of `part` in `text`, not within a word; npos if it is not there.
std::size_t find_apart(std::string_view text, std::string_view part);

/// Returns whether a text has no words but the names of roles, as a template writes them.
bool is_of_labels(std::string_view text);

}  // namespace prefopt::detail
