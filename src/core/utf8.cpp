// SPDX-License-Identifier: Apache-2.0
#include "core/utf8.h"

namespace prefopt::detail {
namespace {

// Bytes of the character that `lead` opens, 0 for a byte that opens none, and the bounds of its
// second byte: they keep out overlong forms, surrogates and what lies over U+10FFFF.
struct Lead {
  std::size_t length = 0;
  unsigned low = 0x80;
  unsigned high = 0xBF;
};

Lead lead_of(unsigned byte) {
  if (byte < 0x80) return {.length = 1};
  if (byte < 0xC2) return {};
  if (byte < 0xE0) return {.length = 2};
  if (byte == 0xE0) return {.length = 3, .low = 0xA0};
  if (byte == 0xED) return {.length = 3, .high = 0x9F};
  if (byte < 0xF0) return {.length = 3};
  if (byte == 0xF0) return {.length = 4, .low = 0x90};
  if (byte < 0xF4) return {.length = 4};
  if (byte == 0xF4) return {.length = 4, .high = 0x8F};
  return {};
}

}  // namespace

Utf8Character utf8_character(std::string_view text, std::size_t at) {
  constexpr char32_t kReplacement = 0xFFFD;
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const Lead lead = lead_of(byte(at));
  if (lead.length == 0) return {.code = kReplacement, .length = 1};
  if (lead.length == 1) return {.code = byte(at), .length = 1, .valid = true};
  char32_t code = byte(at) & (0x7FU >> lead.length);
  for (std::size_t i = 1; i < lead.length; ++i) {
    const unsigned low = i == 1 ? lead.low : 0x80;
    const unsigned high = i == 1 ? lead.high : 0xBF;
    if (at + i >= text.size() || byte(at + i) < low || byte(at + i) > high) {
      return {.code = kReplacement, .length = i};
    }
    code = (code << 6) | (byte(at + i) & 0x3FU);
  }
  return {.code = code, .length = lead.length, .valid = true};
}

std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const Utf8Character character = utf8_character(text, at);
    if (!character.valid) return at;
    at += character.length;
  }
  return std::string_view::npos;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (auto at = find_invalid_utf8(text); at != std::string_view::npos;
       at = find_invalid_utf8(text)) {
    result.append(text.substr(0, at)).append("\xEF\xBF\xBD");
    text.remove_prefix(at + utf8_character(text, at).length);
  }
  return result.append(text);
}

bool is_white_space(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
         code == 0x202F || code == 0x205F || code == 0x3000;
}

}  // namespace prefopt::detail
