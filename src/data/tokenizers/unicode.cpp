// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "core/utf8.h"

namespace prefopt::detail {
namespace {

bool is_mark(char32_t code) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC ||
         category == UTF8PROC_CATEGORY_ME;
}

// Of the letters that are symbols by category: Ⓐ to ⓩ and the squared and circled capitals.
bool is_enclosed_letter(char32_t code) {
  return (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
         (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189);
}

}  // namespace

void append_utf8(char32_t code, std::string& text) {
  utf8proc_uint8_t bytes[4];
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code), bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
}

std::string unicode_form(std::string_view text, const UnicodeForm& form) {
  int options = UTF8PROC_STABLE | (form.composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE);
  if (form.compatible) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t bytes = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
      static_cast<utf8proc_ssize_t>(text.size()), &mapped, static_cast<utf8proc_option_t>(options));
  // The text is UTF-8, so memory is all that can lack.
  if (bytes < 0) throw std::bad_alloc();
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(mapped, std::free);
  return {reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(bytes)};
}

bool is_plainly_in_form(std::string_view text, const UnicodeForm& form) {
  // Below U+0300, whose UTF-8 begins with 0xCC, no character combines with another; other forms
  // change characters from U+00A0 on.
  const unsigned first = form.composes && !form.compatible ? 0xCC : 0x80;
  return std::none_of(text.begin(), text.end(),
                      [first](char c) { return static_cast<unsigned char>(c) >= first; });
}

std::string lowercase(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Character character = utf8_character(text, at);
    at += character.length;
    if (character.code == 0x130) {  // the only one with two characters
      result += "i\xCC\x87";
    } else {
      append_utf8(
          static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(character.code))),
          result);
    }
  }
  return result;
}

std::string without_marks(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Character character = utf8_character(text, at);
    if (!is_mark(character.code)) result += text.substr(at, character.length);
    at += character.length;
  }
  return result;
}

bool is_word_character(char32_t code) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return code == 0x200C || code == 0x200D || is_enclosed_letter(code);
  }
}

std::size_t grapheme_end(std::string_view text, std::size_t at) {
  const auto is_ascii = [&](std::size_t i) { return static_cast<unsigned char>(text[i]) < 0x80; };
  if (is_ascii(at) && text[at] != '\r' && (at + 1 == text.size() || is_ascii(at + 1)))
    return at + 1;
  Utf8Character character = utf8_character(text, at);
  utf8proc_int32_t state = 0;
  while (true) {
    at += character.length;
    if (at >= text.size()) return at;
    const Utf8Character next = utf8_character(text, at);
    if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(character.code),
                                         static_cast<utf8proc_int32_t>(next.code), &state)) {
      return at;
    }
    character = next;
  }
}

std::size_t character_before(std::string_view text, std::size_t end) {
  std::size_t start = end - 1;
  while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
  return start;
}

std::size_t white_space_begin(std::string_view text, std::size_t end, std::size_t limit) {
  while (end > limit) {
    const std::size_t start = character_before(text, end);
    if (start < limit || !is_white_space(utf8_character(text, start).code)) break;
    end = start;
  }
  return end;
}

std::size_t white_space_end(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    const Utf8Character character = utf8_character(text, begin);
    if (!is_white_space(character.code)) break;
    begin += character.length;
  }
  return begin;
}

}  // namespace prefopt::detail
