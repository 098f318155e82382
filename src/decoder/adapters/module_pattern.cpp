// SPDX-License-Identifier: Apache-2.0
#include "decoder/adapters/module_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "core/json.h"
#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

constexpr std::size_t kLongest = 1000;
constexpr std::size_t kDeepest = 50;
/// Names of modules are short: a search that takes longer than this has no end.
constexpr std::uint32_t kMatchLimit = 100'000;

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_plain(char c) { return c >= ' ' && c <= '~'; }
bool is_word(char c) { return is_digit(c) || is_letter(c) || c == '_'; }
bool is_one_of(char c, std::string_view set) { return set.find(c) != std::string_view::npos; }

/// Walks over a pattern, and stops at what is not known to be the same in Python and in PCRE2.
class Walker {
 public:
  explicit Walker(std::string_view pattern) : pattern_(pattern) {}

  std::optional<std::size_t> run() {
    if (pattern_.size() > kLongest) return kLongest;
    while (at_ < pattern_.size()) {
      const std::size_t begin = at_;
      if (!step()) return begin;
    }
    if (!open_.empty()) return pattern_.size();
    return std::nullopt;
  }

 private:
  enum class Before { kNothing, kItem, kRepeated };

  char peek(std::size_t ahead = 0) const {
    return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0';
  }

  bool step() {
    const char c = pattern_[at_++];
    if (!is_plain(c)) return false;
    if (c == '\\') return escape();
    if (c == '[') return set();
    if (c == '(') return open_group();
    if (c == ')') return close_group();
    if (is_one_of(c, "*+?")) return repeat();
    if (c == '{') return count();
    before_ = is_one_of(c, "|^$") ? Before::kNothing : Before::kItem;
    return true;
  }

  bool escape() {
    const char c = peek();
    ++at_;
    const bool is_place = is_one_of(c, "bBAZ");
    before_ = is_place ? Before::kNothing : Before::kItem;
    return is_place || is_one_of(c, "dDwWsS") || (is_plain(c) && !is_word(c));
  }

  bool set() {
    if (peek() == '^') ++at_;
    for (bool first = true; first || peek() != ']'; first = false) {
      const char c = peek();
      ++at_;
      // Classes in a class, and what Python means to read as operations on sets.
      if (!is_plain(c) || c == '[' || (is_one_of(c, "-&|~") && c == peek())) return false;
      bool ends_range = true;
      if (c == '\\') {
        const char escaped = peek();
        ++at_;
        const bool is_class = is_one_of(escaped, "dDwWsS");
        if (!is_class && (!is_plain(escaped) || is_word(escaped))) return false;
        ends_range = !is_class;
      }
      if (peek() == '-' && peek(1) != ']') {
        const bool rises = is_word(c) && is_word(peek(1)) && c <= peek(1);
        if (!ends_range || !rises) return false;
        at_ += 2;
      }
    }
    ++at_;
    before_ = Before::kItem;
    return true;
  }

  bool open_group() {
    bool looks_ahead = false;
    if (peek() == '?') {
      looks_ahead = is_one_of(peek(1), "=!");
      if (peek(1) != ':' && !looks_ahead) return false;
      at_ += 2;
    }
    open_.push_back(looks_ahead);
    before_ = Before::kNothing;
    return open_.size() <= kDeepest;
  }

  bool close_group() {
    if (open_.empty()) return false;
    before_ = open_.back() ? Before::kNothing : Before::kItem;
    open_.pop_back();
    return true;
  }

  bool repeat() {
    if (before_ != Before::kItem) return false;
    before_ = Before::kRepeated;
    if (peek() == '?') ++at_;
    return peek() != '+';  // possessive, which Python has had since 3.11
  }

  bool count() {
    const auto number = [&]() -> std::optional<int> {
      int value = 0, digits = 0;
      for (; is_digit(peek()) && digits < 3; ++digits, ++at_) value = 10 * value + (peek() - '0');
      if (digits == 0 || is_digit(peek())) return std::nullopt;
      return value;
    };
    const auto least = number();
    if (!least) return false;
    if (peek() == ',') {
      ++at_;
      if (peek() != '}') {
        const auto most = number();
        if (!most || *most < *least) return false;
      }
    }
    if (peek() != '}') return false;
    ++at_;
    return repeat();
  }

  std::string_view pattern_;
  std::size_t at_ = 0;
  Before before_ = Before::kNothing;
  std::vector<bool> open_;  // whether each open group looks ahead
};

const pcre2_code* code_of(const std::shared_ptr<const void>& code) {
  return static_cast<const pcre2_code*>(code.get());
}

using MatchData = std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)>;
using MatchContext = std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)>;

}  // namespace

std::optional<std::size_t> find_not_portable(std::string_view pattern) {
  return Walker(pattern).run();
}

ModulePattern::ModulePattern(std::string pattern, std::string where)
    : pattern_(std::move(pattern)), where_(std::move(where)) {
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern_.data()), pattern_.size(),
                                   0, &error, &at, nullptr);
  if (code == nullptr) {
    throw ConfigError(fmt::format("{}: expected a pattern that can be compiled, got '{}'", where_,
                                  shown_text(pattern_)));
  }
  code_.reset(code, pcre2_code_free);
}

namespace {

/// Returns where groups matched; null: there is no match.
MatchData match(const pcre2_code* code, std::string_view name, std::uint32_t options,
                std::string_view pattern, std::string_view where) {
  MatchData data(pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
  const MatchContext context(pcre2_match_context_create(nullptr), pcre2_match_context_free);
  if (!data || !context) throw std::bad_alloc();
  pcre2_set_match_limit(context.get(), kMatchLimit);
  const int result = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(name.data()), name.size(), 0,
                                 PCRE2_ANCHORED | options, data.get(), context.get());
  if (result == PCRE2_ERROR_NOMATCH) return {nullptr, pcre2_match_data_free};
  if (result < 0) {
    throw ConfigError(
        fmt::format("{}: expected a pattern that ends its search within {} steps, got '{}' on '{}'",
                    where, kMatchLimit, shown_text(std::string(pattern)), name));
  }
  return data;
}

}  // namespace

bool ModulePattern::matches(std::string_view name) const {
  return match(code_of(code_), name, PCRE2_ENDANCHORED, pattern_, where_) != nullptr;
}

std::string ModulePattern::index_in(std::string_view name) const {
  const MatchData data = match(code_of(code_), name, 0, pattern_, where_);
  if (!data) return {};
  const int group =
      pcre2_substring_number_from_name(code_of(code_), reinterpret_cast<PCRE2_SPTR>("idx"));
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
  const auto begin = ends[2 * group], end = ends[2 * group + 1];
  if (begin == PCRE2_UNSET) return {};
  return std::string(name.substr(begin, end - begin));
}

}  // namespace prefopt::detail
