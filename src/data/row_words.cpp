// SPDX-License-Identifier: Apache-2.0
#include "data/row_words.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>

#include "core/utf8.h"

namespace prefopt::detail {
namespace {

bool is_space(char32_t code) { return is_white_space(code) || (code >= 0x1C && code <= 0x1F); }

bool is_of_word(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/// Names of roles as templates write them, in lower case; the last are Llama 2's marks.
constexpr std::array<std::string_view, 18> kLabels{
    "system",      "user",   "human",     "prompter", "question", "q",
    "instruction", "input",  "assistant", "gpt",      "model",    "bot",
    "chatbot",     "answer", "response",  "output",   "a",        "inst"};

bool is_label(std::string_view word) {
  return std::find(kLabels.begin(), kLabels.end(), word) != kLabels.end();
}

/// Punctuation of wide scripts and of typesetters.
bool is_wide_mark(char32_t code) {
  return (code >= 0x2010 && code <= 0x206F) || (code >= 0x3000 && code <= 0x303F) ||
         (code >= 0xFF01 && code <= 0xFF0F) || (code >= 0xFF1A && code <= 0xFF20) || code == 0xBF ||
         code == 0xA1 || code == 0xAB || code == 0xBB;
}

/// Size of a control token such as `<|im_end|>`, `</s>` or `<<SYS>>` that `text` begins with, or 0.
std::size_t size_of_control(std::string_view text) {
  constexpr std::size_t kLongest = 24;
  if (!text.starts_with('<')) return 0;
  std::size_t end = text.find_first_of(" \t\r\n>");
  if (end == std::string_view::npos || text[end] != '>' || end > kLongest) return 0;
  while (end < text.size() && text[end] == '>') ++end;
  return end;
}

}  // namespace

std::string_view stripped_before(std::string_view text) {
  std::size_t begin = 0;
  while (begin < text.size()) {
    const Utf8Character character = utf8_character(text, begin);
    if (!is_space(character.code)) break;
    begin += character.length;
  }
  return text.substr(begin);
}

std::string_view stripped_after(std::string_view text) {
  std::size_t end = text.size();
  while (end > 0) {
    std::size_t at = end - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    const Utf8Character character = utf8_character(text, at);
    if (at + character.length != end || !is_space(character.code)) break;
    end = at;
  }
  return text.substr(0, end);
}

std::string_view stripped(std::string_view text) { return stripped_after(stripped_before(text)); }

std::size_t count_words(std::string_view text) {
  std::size_t words = 0;
  bool in_word = false;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Character character = utf8_character(text, at);
    const bool space = is_space(character.code);
    words += !space && !in_word ? 1 : 0;
    in_word = !space;
    at += character.length;
  }
  return words;
}

bool is_telling(std::string_view text) {
  constexpr std::size_t kTellingWords = 3;
  constexpr std::size_t kTellingBytes = 16;
  const std::string_view inner = stripped(text);
  return inner.size() >= kTellingBytes || count_words(inner) >= kTellingWords;
}

std::optional<std::string_view> after_prompt(std::string_view text, std::string_view prompt) {
  const std::string_view inner = stripped(prompt);
  std::string_view rest = stripped_before(text);
  if (inner.empty() || !rest.starts_with(inner)) return std::nullopt;
  rest.remove_prefix(inner.size());
  // White space that the prompt ends with is the prompt's, as far as the text has it too.
  const std::string_view space = prompt.substr(stripped_after(prompt).size());
  const auto apart = std::mismatch(rest.begin(), rest.end(), space.begin(), space.end());
  rest.remove_prefix(static_cast<std::size_t>(apart.first - rest.begin()));
  return rest;
}

std::size_t find_apart(std::string_view text, std::string_view part) {
  if (part.empty()) return 0;
  for (std::size_t at = text.find(part); at != std::string_view::npos;
       at = text.find(part, at + 1)) {
    const std::size_t end = at + part.size();
    const bool begins = at == 0 || !is_of_word(text[at - 1]) || !is_of_word(part.front());
    const bool ends = end == text.size() || !is_of_word(text[end]) || !is_of_word(part.back());
    if (begins && ends) return at;
  }
  return std::string_view::npos;
}

bool is_of_labels(std::string_view text) {
  std::string word;
  for (std::size_t at = 0; at < text.size();) {
    if (const std::size_t size = size_of_control(text.substr(at)); size > 0) {
      if (!word.empty() && !is_label(word)) return false;
      word.clear();
      at += size;
      continue;
    }
    const Utf8Character character = utf8_character(text, at);
    const char c = text[at];
    at += character.length;
    if (is_of_word(c)) {
      word += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
      continue;
    }
    if (character.length > 1 && !is_space(character.code) && !is_wide_mark(character.code)) {
      return false;
    }
    if (!word.empty() && !is_label(word)) return false;
    word.clear();
  }
  return word.empty() || is_label(word);
}

}  // namespace prefopt::detail
