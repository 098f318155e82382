// SPDX-License-Identifier: Apache-2.0
#include "core/json_text.h"

#include <array>
#include <charconv>
#include <optional>
#include <system_error>

namespace prefopt::detail {
namespace {

constexpr std::array<std::string_view, 3> kNonFiniteLiterals{"NaN", "-Infinity", "Infinity"};
constexpr std::size_t kEscapeLength = 6;  // of \uXXXX

std::optional<unsigned> escaped_unit(std::string_view json, std::size_t at) {
  const std::string_view escape = json.substr(at, kEscapeLength);
  if (escape.size() < kEscapeLength || !escape.starts_with("\\u")) return std::nullopt;
  unsigned unit = 0;
  const char* end = escape.data() + escape.size();
  const auto [stop, error] = std::from_chars(escape.data() + 2, end, unit, 16);
  if (error != std::errc() || stop != end) return std::nullopt;
  return unit;
}

bool is_low_half(std::optional<unsigned> unit) { return unit && *unit >= 0xDC00 && *unit < 0xE000; }
bool is_high_half(std::optional<unsigned> unit) {
  return unit && *unit >= 0xD800 && *unit < 0xDC00;
}

std::size_t next_lone_surrogate(std::string_view json, std::size_t at) {
  while ((at = json.find('\\', at)) != std::string_view::npos) {
    const auto unit = escaped_unit(json, at);
    if (is_low_half(unit)) return at;
    if (is_high_half(unit)) {
      if (!is_low_half(escaped_unit(json, at + kEscapeLength))) return at;
      at += kEscapeLength;
    }
    at += unit ? kEscapeLength : 2;  // an escaped backslash opens no escape
  }
  return at;
}

}  // namespace

std::string quote_non_finite(std::string_view json, std::string_view mark) {
  std::string quoted;
  std::size_t copied = 0;
  bool in_text = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    if (json[i] == '"') {
      in_text = !in_text;
    } else if (in_text) {
      if (json[i] == '\\') ++i;
    } else if (json[i] == 'N' || json[i] == 'I' || json[i] == '-') {
      for (const std::string_view literal : kNonFiniteLiterals) {
        if (!json.substr(i).starts_with(literal)) continue;
        quoted.append(json.substr(copied, i - copied)).append("\"").append(mark);
        quoted.append(literal).append("\"");
        copied = i + literal.size();
        i = copied - 1;
        break;
      }
    }
  }
  return quoted.append(json.substr(copied));
}

std::size_t find_lone_surrogate(std::string_view json) { return next_lone_surrogate(json, 0); }

std::string replace_lone_surrogates(std::string_view json) {
  std::string replaced;
  std::size_t copied = 0;
  for (std::size_t at = next_lone_surrogate(json, 0); at != std::string_view::npos;
       at = next_lone_surrogate(json, copied)) {
    replaced.append(json.substr(copied, at - copied)).append("\\ufffd");
    copied = at + kEscapeLength;
  }
  return replaced.append(json.substr(copied));
}

}  // namespace prefopt::detail
