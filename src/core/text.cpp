// SPDX-License-Identifier: Apache-2.0
#include "core/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "core/utf8.h"

namespace prefopt::detail {
namespace {

// Edits that turn `a` into `b`: insert, delete, replace, or swap two neighbours.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), above(b.size() + 1), row(b.size() + 1);
  std::iota(above.begin(), above.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    before.swap(above);
    above.swap(row);
  }
  return above[b.size()];
}

// C1 controls, which a terminal obeys as well, and marks of direction, which reorder what follows.
bool is_hidden(char32_t c) {
  return (c >= 0x80 && c <= 0x9f) || (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

}  // namespace

void append_picture(unsigned char control, std::string& out) {
  // U+2400 and on show the first 32 characters, U+2421 the last of ASCII.
  out += "\xe2\x90";
  out += static_cast<char>(0x80 + (control == 0x7f ? 0x21 : control));
}

std::string printable(std::string_view text, bool keep_lines) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Character character = utf8_character(text, at);
    const char32_t code = character.code;
    const bool is_kept = keep_lines && (code == '\n' || code == '\t');
    if (!character.valid) {
      out += "\uFFFD";
    } else if ((code < 0x20 && !is_kept) || code == 0x7f) {
      append_picture(static_cast<unsigned char>(code), out);
    } else if (is_hidden(code)) {
      out += fmt::format("\\u{:04x}", static_cast<std::uint32_t>(code));
    } else {
      out.append(text, at, character.length);
    }
    at += character.length;
  }
  return out;
}

std::string nearest(std::string_view name, const std::vector<std::string_view>& candidates) {
  std::string best;
  // People often type the start of a name from memory: better than nothing.
  constexpr std::size_t kPrefix = 1000;
  std::size_t best_distance = kPrefix + 1;
  for (std::string_view candidate : candidates) {
    const std::size_t most = std::max<std::size_t>(1, candidate.size() / 3);
    // A name may be as long as a file; its length alone tells that it is none of these.
    std::size_t distance =
        name.size() > candidate.size() + most ? most + 1 : edit_distance(name, candidate);
    if (distance > most || distance >= name.size()) {
      if (std::min(name.size(), candidate.size()) < 3 ||
          !(candidate.starts_with(name) || name.starts_with(candidate))) {
        continue;
      }
      distance = kPrefix;
    }
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string did_you_mean(std::string_view name, const std::vector<std::string_view>& candidates) {
  const std::string near = nearest(name, candidates);
  return near.empty() ? "" : fmt::format("; did you mean '{}'?", near);
}

}  // namespace prefopt::detail
