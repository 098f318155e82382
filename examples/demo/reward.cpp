// SPDX-License-Identifier: Apache-2.0
#include "reward.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <set>
#include <string>
#include <tuple>
#include <vector>

namespace demo {
namespace {

using Words = std::vector<std::string>;

constexpr std::size_t kFewestWords = 8;
constexpr int kMostSentences = 3;
constexpr std::size_t kShortestContentWord = 4;
constexpr std::size_t kStem = 5;

constexpr auto kFillers = std::to_array<std::string_view>({
    "absolutely",
    "as an ai",
    "certainly",
    "great question",
    "hello",
    "here are",
    "here is",
    "here's",
    "hi",
    "i am",
    "i can",
    "i'd be",
    "i'm",
    "of course",
    "sure",
    "that's a",
    "yes",
});

constexpr auto kFunctionWords = std::to_array<std::string_view>({
    "about",  "after", "before",   "between", "contain", "describe", "does",    "during", "explain",
    "from",   "give",  "have",     "into",    "many",    "name",     "never",   "only",   "short",
    "should", "some",  "somebody", "that",    "their",   "them",     "they",    "this",   "through",
    "what",   "when",  "where",    "which",   "while",   "with",     "without", "write",  "your",
});

// Bytes beyond ASCII belong to letters; no locale is asked.
bool is_word_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '\'' ||
         (static_cast<unsigned char>(c) & 0x80) != 0;
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

Words words_of(std::string_view text) {
  Words words;
  bool inside = false;
  for (const char c : text) {
    if (is_word_byte(c)) {
      if (!inside) words.emplace_back();
      words.back() += lower(c);
    }
    inside = is_word_byte(c);
  }
  return words;
}

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(trimmed(text.substr(0, end)));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

bool is_end_mark(char c) { return c == '.' || c == '!' || c == '?'; }

// Behind an end mark may stand what closes a quotation or a bracket.
bool ends_sentence(std::string_view text) {
  while (!text.empty() && (text.back() == '"' || text.back() == ')' || text.back() == '\'')) {
    text.remove_suffix(1);
  }
  return !text.empty() && is_end_mark(text.back());
}

int count_sentences(std::string_view text) {
  int count = 0;
  for (const std::string_view line : lines_of(text)) {
    std::size_t begin = 0;
    for (std::size_t at = 0; at <= line.size(); ++at) {
      const bool ends =
          at == line.size() || (is_space(line[at]) && ends_sentence(line.substr(0, at)));
      if (!ends) continue;
      if (words_of(line.substr(begin, at - begin)).size() >= 2) ++count;
      begin = at;
    }
  }
  return count;
}

// "1. …", "2) …"
bool is_numbered(std::string_view line) {
  std::size_t digits = 0;
  while (digits < line.size() && is_digit(line[digits])) ++digits;
  return digits > 0 && digits + 1 < line.size() && (line[digits] == '.' || line[digits] == ')') &&
         line[digits + 1] == ' ';
}

bool is_markdown(std::string_view line) {
  constexpr auto kOpenings =
      std::to_array<std::string_view>({"- ", "* ", "+ ", "#", "|", "> ", "•"});
  return is_numbered(line) || line.find("**") != line.npos || line.find('`') != line.npos ||
         std::any_of(kOpenings.begin(), kOpenings.end(),
                     [&](std::string_view opening) { return line.starts_with(opening); });
}

bool opens_with(const Words& words, std::string_view phrase) {
  const Words expected = words_of(phrase);
  return expected.size() <= words.size() &&
         std::equal(expected.begin(), expected.end(), words.begin());
}

double concise(std::string_view response, const Words& words) {
  if (words.size() < kFewestWords) return 0;
  const int beyond = std::max(0, count_sentences(response) - kMostSentences);
  return std::max(0.0, 1 - beyond / 3.0);
}

double plain(std::string_view response) {
  const auto lines = lines_of(response);
  const auto marked = std::count_if(lines.begin(), lines.end(), is_markdown);
  return std::max(0.0, 1 - static_cast<double>(marked) / 2);
}

double direct(const Words& words) {
  const bool filler = std::any_of(kFillers.begin(), kFillers.end(), [&](std::string_view phrase) {
    return opens_with(words, phrase);
  });
  return filler ? 0 : 1;
}

double on_topic(std::string_view prompt, const Words& words) {
  std::set<std::string> stems;
  for (const std::string& word : words_of(prompt)) {
    const bool content =
        word.size() >= kShortestContentWord &&
        std::find(kFunctionWords.begin(), kFunctionWords.end(), word) == kFunctionWords.end();
    if (content) stems.insert(word.substr(0, kStem));
  }
  if (stems.empty()) return 1;
  const auto mentioned = std::count_if(stems.begin(), stems.end(), [&](const std::string& stem) {
    return std::any_of(words.begin(), words.end(),
                       [&](const std::string& word) { return word.starts_with(stem); });
  });
  return std::min(1.0, 2.0 * static_cast<double>(mentioned) / static_cast<double>(stems.size()));
}

double varied(const Words& words) {
  if (words.size() < 3) return 1;
  std::set<std::tuple<std::string_view, std::string_view, std::string_view>> distinct;
  for (std::size_t i = 2; i < words.size(); ++i) {
    distinct.emplace(words[i - 2], words[i - 1], words[i]);
  }
  return static_cast<double>(distinct.size()) / static_cast<double>(words.size() - 2);
}

}  // namespace

std::array<std::pair<std::string_view, double>, 6> RewardTerms::named() const {
  return {{{"complete", complete},
           {"concise", concise},
           {"plain", plain},
           {"direct", direct},
           {"on_topic", on_topic},
           {"varied", varied}}};
}

double RewardTerms::total() const {
  double sum = 0;
  for (const auto& [name, value] : named()) sum += value;
  return sum / static_cast<double>(named().size());
}

RewardTerms reward_terms(std::string_view prompt, std::string_view response, bool ended) {
  const Words words = words_of(response);
  if (words.empty()) return {};
  return {.complete = ended && ends_sentence(trimmed(response)) ? 1.0 : 0.0,
          .concise = concise(response, words),
          .plain = plain(response),
          .direct = direct(words),
          .on_topic = on_topic(prompt, words),
          .varied = varied(words)};
}

}  // namespace demo
