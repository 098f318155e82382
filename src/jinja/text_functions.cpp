// SPDX-License-Identifier: Apache-2.0
#include "jinja/text_functions.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "core/utf8.h"
#include "jinja/budget.h"
#include "jinja/failure.h"

namespace prefopt::jinja {
namespace {

using detail::utf8_character;
using detail::Utf8Character;

enum class Case { kUpper, kLower, kTitle };

/// Letters that Unicode's SpecialCasing.txt maps to several, without conditions.
bool becomes_several(char32_t code, Case to) {
  if (to == Case::kLower) return code == 0x130 || code == 0x3a3;  // the second: by its place
  const auto within = [&](char32_t first, char32_t last) { return code >= first && code <= last; };
  if (code < 0x100) return code == 0xdf;
  if (within(0xfb00, 0xfb06) || within(0xfb13, 0xfb17) || within(0x1e96, 0x1e9a)) return true;
  if (within(0x1f80, 0x1faf)) return true;
  constexpr char32_t kOthers[] = {0x149,  0x1f0,  0x390,  0x3b0,  0x587,  0x1f50, 0x1f52, 0x1f54,
                                  0x1f56, 0x1fb2, 0x1fb3, 0x1fb4, 0x1fb6, 0x1fb7, 0x1fbc, 0x1fc2,
                                  0x1fc3, 0x1fc4, 0x1fc6, 0x1fc7, 0x1fcc, 0x1fd2, 0x1fd3, 0x1fd6,
                                  0x1fd7, 0x1fe2, 0x1fe3, 0x1fe4, 0x1fe6, 0x1fe7, 0x1ff2, 0x1ff3,
                                  0x1ff4, 0x1ff6, 0x1ff7, 0x1ffc};
  return std::find(std::begin(kOthers), std::end(kOthers), code) != std::end(kOthers);
}

utf8proc_int32_t mapped(char32_t code, Case to) {
  const auto number = static_cast<utf8proc_int32_t>(code);
  switch (to) {
    case Case::kUpper:
      return utf8proc_toupper(number);
    case Case::kLower:
      return utf8proc_tolower(number);
    case Case::kTitle:
      return utf8proc_totitle(number);
  }
  return number;
}

void append_mapped(const Text& text, std::size_t at, const Utf8Character& character, Case to,
                   Text& out) {
  if (character.code < 0x80 || !character.valid) {
    const char c = text.bytes()[at];
    const bool changes = to == Case::kLower ? c >= 'A' && c <= 'Z' : c >= 'a' && c <= 'z';
    const char other = changes ? static_cast<char>(c ^ 0x20) : c;
    out.append(std::string_view(&other, 1), text.origin(at));
    return;
  }
  if (character.code == 0xdf && to != Case::kLower) {
    out.append(to == Case::kUpper ? "SS" : "Ss", text.origin(at));
    return;
  }
  if (becomes_several(character.code, to)) {
    throw Failure(fmt::format("expected letters with one letter of the other case, got U+{:04X}",
                              static_cast<std::uint32_t>(character.code)));
  }
  std::array<utf8proc_uint8_t, 4> buffer{};
  const auto size = utf8proc_encode_char(mapped(character.code, to), buffer.data());
  out.append(std::string_view(reinterpret_cast<const char*>(buffer.data()),
                              static_cast<std::size_t>(size)),
             text.origin(at));
}

/// Maps each character to the case that `case_of(code)` says.
template <class CaseOf>
Text map_cases(const Text& text, const CaseOf& case_of) {
  Text result;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Character character = utf8_character(text.view(), at);
    append_mapped(text, at, character, case_of(character.code), result);
    at += character.length;
  }
  return result.as_markup(text.is_markup());
}

int category(char32_t code) { return utf8proc_category(static_cast<utf8proc_int32_t>(code)); }

bool is_upper(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LU; }
bool is_lower(char32_t code) {
  return category(code) == UTF8PROC_CATEGORY_LL || code == 0xaa || code == 0xba;
}
bool is_titled(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LT; }
bool is_cased(char32_t code) { return is_upper(code) || is_lower(code) || is_titled(code); }

bool is_alpha(char32_t code) {
  switch (category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return true;
    default:
      return false;
  }
}

bool is_number(char32_t code) {
  const int kind = category(code);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL ||
         kind == UTF8PROC_CATEGORY_NO;
}

bool is_word(char32_t code) { return is_alpha(code) || is_number(code) || code == '_'; }

std::size_t last_start(std::string_view text, std::size_t end) {
  do {
    --end;
  } while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

std::size_t limit_of(std::int64_t limit) {
  return limit < 0 ? static_cast<std::size_t>(-1) : static_cast<std::size_t>(limit);
}

std::vector<Text> split_words(const Text& text, std::size_t limit) {
  std::vector<Text> parts;
  std::size_t at = 0;
  const auto skip = [&](bool spaces) {
    while (at < text.size()) {
      const Utf8Character character = utf8_character(text.view(), at);
      if (is_space(character.code) != spaces) break;
      at += character.length;
    }
  };
  skip(true);
  while (at < text.size()) {
    const std::size_t begin = at;
    if (parts.size() == limit) {
      parts.push_back(text.part(begin, text.size()));
      break;
    }
    skip(false);
    parts.push_back(text.part(begin, at));
    skip(true);
  }
  return parts;
}

std::vector<Text> split_words_from_right(const Text& text, std::size_t limit) {
  std::vector<Text> parts;
  std::size_t end = text.size();
  const auto skip = [&](bool spaces) {
    while (end > 0) {
      const std::size_t start = last_start(text.view(), end);
      if (is_space(utf8_character(text.view(), start).code) != spaces) break;
      end = start;
    }
  };
  skip(true);
  while (end > 0) {
    const std::size_t stop = end;
    if (parts.size() == limit) {
      parts.push_back(text.part(0, stop));
      break;
    }
    skip(false);
    parts.push_back(text.part(end, stop));
    skip(true);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

void check_separator(const Text& separator) {
  if (separator.empty()) throw Failure("expected a separator, got an empty text");
}

std::size_t missing_characters(const Text& text, std::int64_t width) {
  const auto count = static_cast<std::int64_t>(count_characters(text.view()));
  if (width <= count) return 0;
  if (width - count > static_cast<std::int64_t>(kMaxTextBytes)) {
    throw Failure("expected texts of at most 64 MiB, got a longer one");
  }
  return static_cast<std::size_t>(width - count);
}

Text padded(const Text& text, std::size_t before, std::size_t after, std::string_view fill) {
  Text result;
  for (std::size_t i = 0; i < before; ++i) result.append(fill);
  result.append(text);
  for (std::size_t i = 0; i < after; ++i) result.append(fill);
  return result;
}

}  // namespace

bool is_space(char32_t code) {
  return (code >= 0x1c && code <= 0x1f) || detail::is_white_space(code);
}

Text upper(const Text& text) {
  return map_cases(text, [](char32_t) { return Case::kUpper; });
}

Text lower(const Text& text) {
  return map_cases(text, [](char32_t) { return Case::kLower; });
}

Text capitalize(const Text& text) {
  bool is_first = true;
  return map_cases(
      text, [&](char32_t) { return std::exchange(is_first, false) ? Case::kTitle : Case::kLower; });
}

Text swap_case(const Text& text) {
  return map_cases(text,
                   [](char32_t code) { return is_upper(code) ? Case::kLower : Case::kUpper; });
}

Text title(const Text& text) {
  bool after_letter = false;
  return map_cases(text, [&](char32_t code) {
    const bool was = std::exchange(after_letter, is_cased(code));
    return was ? Case::kLower : Case::kTitle;
  });
}

Text title_of_words(const Text& text) {
  bool begins = true;
  return map_cases(text, [&](char32_t code) {
    const bool parts =
        code == '-' || code == '(' || code == '{' || code == '[' || code == '<' || is_space(code);
    const bool was = std::exchange(begins, parts);
    return was ? Case::kUpper : Case::kLower;
  });
}

Text strip(const Text& text, Side side, const Text* characters) {
  const std::string_view view = text.view();
  const auto goes = [&](std::size_t at, const Utf8Character& character) {
    if (characters == nullptr) return is_space(character.code);
    return characters->view().find(view.substr(at, character.length)) != std::string_view::npos;
  };
  std::size_t begin = 0, end = view.size();
  while (side != Side::kRight && begin < end) {
    const Utf8Character character = utf8_character(view, begin);
    if (!goes(begin, character)) break;
    begin += character.length;
  }
  while (side != Side::kLeft && begin < end) {
    const std::size_t start = last_start(view, end);
    if (!goes(start, utf8_character(view, start))) break;
    end = start;
  }
  return text.part(begin, end).as_markup(text.is_markup());
}

std::vector<Text> split(const Text& text, const Text* separator, std::int64_t limit) {
  if (separator == nullptr) return split_words(text, limit_of(limit));
  check_separator(*separator);
  std::vector<Text> parts;
  std::size_t begin = 0;
  while (parts.size() < limit_of(limit)) {
    const std::size_t found = text.view().find(separator->view(), begin);
    if (found == std::string_view::npos) break;
    parts.push_back(text.part(begin, found));
    begin = found + separator->size();
  }
  parts.push_back(text.part(begin, text.size()));
  return parts;
}

std::vector<Text> split_from_right(const Text& text, const Text* separator, std::int64_t limit) {
  if (separator == nullptr) return split_words_from_right(text, limit_of(limit));
  check_separator(*separator);
  std::vector<Text> parts;
  std::size_t end = text.size();
  while (parts.size() < limit_of(limit) && end >= separator->size()) {
    const std::size_t found = text.view().rfind(separator->view(), end - separator->size());
    if (found == std::string_view::npos) break;
    parts.push_back(text.part(found + separator->size(), end));
    end = found;
  }
  parts.push_back(text.part(0, end));
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<Text> split_lines(const Text& text, bool keep_ends) {
  const auto ends = [](char32_t code) {
    return (code >= 0x0a && code <= 0x0d) || (code >= 0x1c && code <= 0x1e) || code == 0x85 ||
           code == 0x2028 || code == 0x2029;
  };
  std::vector<Text> lines;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Character character = utf8_character(text.view(), at);
    const std::size_t end = at;
    at += character.length;
    if (!ends(character.code)) continue;
    if (character.code == '\r' && at < text.size() && text.bytes()[at] == '\n') ++at;
    lines.push_back(text.part(begin, keep_ends ? at : end));
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.part(begin, text.size()));
  return lines;
}

Text replace(const Text& text, const Text& old, const Text& other, std::int64_t limit) {
  Text result;
  std::size_t done = 0, count = 0;
  const std::size_t most = limit_of(limit);
  if (old.empty()) {
    const Characters characters(text.view());
    for (std::size_t i = 0; i <= characters.count() && count < most; ++i, ++count) {
      result.append_part(text, done, characters.offset(i));
      done = characters.offset(i);
      result.append(other);
    }
  }
  while (!old.empty() && count++ < most) {
    const std::size_t found = text.view().find(old.view(), done);
    if (found == std::string_view::npos) break;
    result.append_part(text, done, found);
    result.append(other);
    done = found + old.size();
  }
  result.append_part(text, done, text.size());
  return result;
}

Text join(const Text& separator, const std::vector<Text>& parts) {
  Text result;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) result.append(separator);
    result.append(parts[i]);
  }
  return result;
}

Text reversed(const Text& text) {
  const Characters characters(text.view());
  Text result;
  for (std::size_t i = characters.count(); i > 0; --i) {
    result.append_part(text, characters.offset(i - 1), characters.offset(i));
  }
  return result.as_markup(text.is_markup());
}

Text escaped(const Text& text) {
  Text result;
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size(); ++at) {
    const char c = text.bytes()[at];
    const std::string_view written = c == '&'    ? "&amp;"
                                     : c == '<'  ? "&lt;"
                                     : c == '>'  ? "&gt;"
                                     : c == '\'' ? "&#39;"
                                     : c == '"'  ? "&#34;"
                                                 : "";
    if (written.empty()) continue;
    result.append_part(text, done, at);
    result.append(written, text.origin(at));
    done = at + 1;
  }
  result.append_part(text, done, text.size());
  return result;
}

Text padded_left(const Text& text, std::int64_t width, std::string_view fill) {
  return padded(text, missing_characters(text, width), 0, fill);
}

Text padded_right(const Text& text, std::int64_t width, std::string_view fill) {
  return padded(text, 0, missing_characters(text, width), fill);
}

Text centered(const Text& text, std::int64_t width, std::string_view fill) {
  const std::size_t missing = missing_characters(text, width);
  // Python's rule for where the odd one goes.
  const std::size_t left = missing / 2 + (missing & static_cast<std::size_t>(width) & 1);
  return padded(text, left, missing - left, fill);
}

std::int64_t count_words(const Text& text) {
  std::int64_t count = 0;
  bool in_word = false;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Character character = utf8_character(text.view(), at);
    const bool was = std::exchange(in_word, is_word(character.code));
    if (in_word && !was) ++count;
    at += character.length;
  }
  return count;
}

bool is_of(const Text& text, CharacterClass kind) {
  if (text.empty()) return kind == CharacterClass::kAscii;
  bool has_cased = false, after_cased = false;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Character character = utf8_character(text.view(), at);
    const char32_t code = character.code;
    at += character.length;
    switch (kind) {
      case CharacterClass::kAlnum:
        if (!is_alpha(code) && !is_number(code)) return false;
        break;
      case CharacterClass::kAlpha:
        if (!is_alpha(code)) return false;
        break;
      case CharacterClass::kAscii:
        if (code >= 0x80) return false;
        break;
      case CharacterClass::kDigit:
        if (category(code) == UTF8PROC_CATEGORY_NO) {
          throw Failure("expected decimal digits or none, got another number");
        }
        if (category(code) != UTF8PROC_CATEGORY_ND) return false;
        break;
      case CharacterClass::kSpace:
        if (!is_space(code)) return false;
        break;
      case CharacterClass::kLower:
        if (is_upper(code) || is_titled(code)) return false;
        break;
      case CharacterClass::kUpper:
        if (is_lower(code) || is_titled(code)) return false;
        break;
      case CharacterClass::kTitle:
        if (is_upper(code) || is_titled(code) ? after_cased : is_lower(code) && !after_cased) {
          return false;
        }
        after_cased = is_cased(code);
        break;
    }
    has_cased |= is_cased(code);
  }
  return has_cased || (kind != CharacterClass::kLower && kind != CharacterClass::kUpper &&
                       kind != CharacterClass::kTitle);
}

}  // namespace prefopt::jinja
