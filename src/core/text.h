// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace prefopt::detail {

template <class Names>
bool contains(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

inline bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// Returns `text` for a terminal: control characters as pictures (␛) or, beyond ASCII, as `\u009b`,
/// the marks that turn the direction of text likewise, and U+FFFD for what is no UTF-8. A file that
/// is named in a message can so neither hide a part of it nor talk to the terminal. `keep_lines`:
/// line feeds and tabs stay.
std::string printable(std::string_view text, bool keep_lines = false);

/// Appends the picture of a control character below 0x20 or of 0x7f.
void append_picture(unsigned char control, std::string& out);

/// Returns the candidate within a third of its length in edits; "" when nothing is near.
std::string nearest(std::string_view name, const std::vector<std::string_view>& candidates);

/// "; did you mean 'x'?" or "".
std::string did_you_mean(std::string_view name, const std::vector<std::string_view>& candidates);

}  // namespace prefopt::detail
