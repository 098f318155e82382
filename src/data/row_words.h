// SPDX-License-Identifier: Apache-2.0
#pragma once

// Texts of rows side by side: which of them say the same.

#include <cstddef>
#include <optional>
#include <string_view>

namespace prefopt::detail {

/// `text` without outer white space, as Python's str.strip() and Jinja's trim leave it.
std::string_view stripped(std::string_view text);
/// The same of one end.
std::string_view stripped_before(std::string_view text);
std::string_view stripped_after(std::string_view text);

/// Runs of characters between white space.
std::size_t count_words(std::string_view text);

/// Whether a text is so long that another one holds it on purpose, not by chance.
bool is_telling(std::string_view text);

/// What follows `prompt` in a text that begins with it, whatever white space is around it. None
/// where it does not, or where `prompt` is blank.
std::optional<std::string_view> after_prompt(std::string_view text, std::string_view prompt);

/// Place of `part` in `text`, not within a word; npos where it is not there.
std::size_t find_apart(std::string_view text, std::string_view part);

/// Whether a text has no words but the names of roles, as a template writes them.
bool is_of_labels(std::string_view text);

}  // namespace prefopt::detail
