// SPDX-License-Identifier: Apache-2.0
#include "data/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <new>
#include <vector>

#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

constexpr std::string_view kWhiteSpace = R"(\t-\r\x{85}\p{Z})";

bool is_ascii_punctuation(char c) {
  return static_cast<unsigned char>(c) < 0x80 && std::ispunct(static_cast<unsigned char>(c)) != 0;
}

// Rewrites what PCRE2 reads differently and refuses what this file does not know.
class Translator {
 public:
  Translator(std::string_view pattern, std::string_view where) : pattern_(pattern), where_(where) {}

  std::string run() {
    if (pattern_.empty()) fail("an empty one");
    while (at_ < pattern_.size()) item();
    return std::move(out_);
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw CheckpointError(fmt::format(
        "{}: expected a pattern that PCRE2 and Oniguruma read alike, got {} at offset {} of '{}'",
        where_, what, at_, pattern_));
  }

  char peek(std::size_t ahead = 0) const {
    return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0';
  }
  bool starts(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  void copy(std::size_t count) {
    out_ += pattern_.substr(at_, count);
    at_ += count;
  }

  void item() {
    switch (peek()) {
      case '\\':
        return escape(/*in_set=*/false);
      case '[':
        return set();
      case '(':
        return open_group();
      case ')':
        if (caseless_.empty()) fail("')'");
        caseless_.pop_back();
        copy(1);
        return;
      case '^':
      case '$':
        return fail("an anchor");
      case '?':
      case '*':
      case '+':
        copy(1);
        if (peek() == '?' || peek() == '+') copy(1);
        return;
      case '{':
        return repetition();
      default:
        copy(1);
    }
  }

  void open_group() {
    bool caseless = !caseless_.empty() && caseless_.back();
    std::string_view opening = "(";
    if (peek(1) == '?') {
      const std::array<std::string_view, 4> known{"(?:", "(?i:", "(?=", "(?!"};
      const auto found =
          std::find_if(known.begin(), known.end(), [&](auto text) { return starts(text); });
      if (found == known.end()) fail(fmt::format("'{}'", pattern_.substr(at_, 3)));
      opening = *found;
      caseless |= opening == "(?i:";
    } else if (peek(1) == '*') {
      fail("'(*'");
    }
    caseless_.push_back(caseless);
    copy(opening.size());
  }

  // `{n}`, `{n,}` and `{n,m}`; a `?` or `+` behind it means one thing in Ruby and one in Perl.
  void repetition() {
    std::size_t end = at_ + 1;
    while (end < pattern_.size() && (is_digit(pattern_[end]) || pattern_[end] == ',')) ++end;
    const std::string_view inside = pattern_.substr(at_ + 1, end - at_ - 1);
    const char after = end + 1 < pattern_.size() ? pattern_[end + 1] : '\0';
    if (end >= pattern_.size() || pattern_[end] != '}' || inside.empty() || inside[0] == ',' ||
        std::count(inside.begin(), inside.end(), ',') > 1 || after == '?' || after == '+') {
      fail("'{'");
    }
    copy(end + 1 - at_);
  }

  void set() {
    copy(1);
    if (peek() == '^') copy(1);
    if (peek() == ']') fail("an empty set");
    while (peek() != ']') {
      if (at_ >= pattern_.size()) fail("a set without end");
      if (peek() == '[') fail("a set in a set");
      if (starts("&&")) fail("'&&'");
      if (peek() == '\\') {
        escape(/*in_set=*/true);
      } else {
        copy(1);
      }
    }
    copy(1);
  }

  void escape(bool in_set) {
    const char kind = peek(1);
    if (kind == 'p' || kind == 'P') return category();
    if (kind == 's' || (kind == 'S' && !in_set)) {
      out_ += in_set ? std::string(kWhiteSpace)
                     : fmt::format("[{}{}]", kind == 'S' ? "^" : "", kWhiteSpace);
      at_ += 2;
      return;
    }
    const bool known = std::string_view("rntfd").find(kind) != std::string_view::npos;
    if (!known && !is_ascii_punctuation(kind)) fail(fmt::format("'{}'", pattern_.substr(at_, 2)));
    copy(2);
  }

  // Scripts are left out: PCRE2 takes them with their extensions. So are categories where case does
  // not count, which widens `\p{Lu}` in PCRE2.
  void category() {
    static constexpr std::string_view kNames =
        " L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp ";
    const std::size_t end = std::min(pattern_.find('}', at_), pattern_.size());
    const std::string_view name =
        peek(2) == '{' && end < pattern_.size() ? pattern_.substr(at_ + 3, end - at_ - 3) : "";
    const bool caseless = !caseless_.empty() && caseless_.back();
    if (name.empty() || name.find(' ') != std::string_view::npos ||
        kNames.find(fmt::format(" {} ", name)) == std::string_view::npos || caseless) {
      constexpr std::size_t kMaxShown = 24;
      fail(fmt::format("'{}'", pattern_.substr(at_, std::min(end - at_ + 1, kMaxShown))));
    }
    copy(end + 1 - at_);
  }

  std::string_view pattern_, where_;
  std::size_t at_ = 0;
  std::string out_;
  std::vector<bool> caseless_;  // of each open group
};

const pcre2_code* code_of(const std::shared_ptr<const void>& code) {
  return static_cast<const pcre2_code*>(code.get());
}

std::string message_of(int error) {
  std::array<PCRE2_UCHAR, 128> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

}  // namespace

SplitPattern::SplitPattern(std::string_view pattern, std::string_view where) : pattern_(pattern) {
  const std::string translated = Translator(pattern, where).run();
  const std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);  // what `.` leaves out, in Oniguruma too
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NO_AUTO_CAPTURE, &error, &at, context.get());
  if (code == nullptr) {
    throw CheckpointError(fmt::format("{}: expected a pattern that can be compiled, got '{}' ({})",
                                      where, pattern, message_of(error)));
  }
  code_.reset(code, pcre2_code_free);
  std::uint32_t matches_empty = 0;
  pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0) {
    throw CheckpointError(fmt::format(
        "{}: expected a pattern that matches one character at least, got '{}'", where, pattern));
  }
  // Without a just-in-time compiler the interpreter matches the same, only slower.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
}

SplitPattern::Scratch::Scratch() : data_(pcre2_match_data_create(1, nullptr)) {
  if (!data_) throw std::bad_alloc();
}

void SplitPattern::Scratch::Free::operator()(void* data) const {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(data));
}

std::optional<SplitPattern::Match> SplitPattern::find(std::string_view text, std::size_t from,
                                                      Scratch& scratch) const {
  auto* data = static_cast<pcre2_match_data*>(scratch.data_.get());
  const auto match = [&](std::uint32_t options) {
    return pcre2_match(code_of(code_), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       PCRE2_NO_UTF_CHECK | options, data, nullptr);
  };
  int result = match(0);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
  if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (result < 0) {
    throw DataError(
        fmt::format("tokenizer: expected a text that the pattern '{}' splits within "
                    "PCRE2's limits, got one of {} bytes ({})",
                    pattern_, text.size(), message_of(result)));
  }
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data);
  return Match{.begin = ends[0], .end = ends[1]};
}

std::string quote_pattern(std::string_view text) {
  std::string pattern;
  for (char c : text) {
    if (is_ascii_punctuation(c)) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

}  // namespace prefopt::detail
