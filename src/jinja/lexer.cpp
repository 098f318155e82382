// SPDX-License-Identifier: Apache-2.0
#include "jinja/lexer.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "core/text.h"
#include "core/utf8.h"
#include "jinja/text_functions.h"

namespace prefopt::jinja {
namespace {

using detail::is_digit;

constexpr std::string_view kDigits = "0123456789";
constexpr auto kOperators = std::to_array<std::string_view>(
    {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
     "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"});

bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

/// Line ends become \n; the last one goes.
std::string with_plain_lines(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    text += source[i] == '\r' ? '\n' : source[i];
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

int count_lines(std::string_view text) {
  return static_cast<int>(std::count(text.begin(), text.end(), '\n'));
}

/// How the tag at the end of a text cuts the text before it.
struct Opening {
  enum class Kind { kBlock, kVariable, kComment, kRaw } kind;
  std::size_t begin, end;  ///< of the tag's beginning, with its sign
  char sign;               ///< '-', '+' or 0
};

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(with_plain_lines(source)), view_(source_) {}

  std::vector<Token> run() {
    while (at_ < view_.size()) {
      const auto opening = find_opening();
      if (!opening) {
        add(TokenType::kData, std::string(view_.substr(at_)));
        at_ = view_.size();
        break;
      }
      take_data(*opening);
      move_to(opening->end);
      switch (opening->kind) {
        case Opening::Kind::kBlock:
          add(TokenType::kBlockBegin);
          take_tag(/*is_block=*/true);
          break;
        case Opening::Kind::kVariable:
          add(TokenType::kVariableBegin);
          take_tag(/*is_block=*/false);
          break;
        case Opening::Kind::kComment:
          skip_comment();
          break;
        case Opening::Kind::kRaw:
          take_raw();
          break;
      }
    }
    add(TokenType::kEnd);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw SyntaxFailure(line_, what); }

  void add(TokenType type, std::string text = {}) {
    tokens_.push_back({.type = type, .text = std::move(text), .line = line_});
  }

  /// Moves forward and counts lines.
  void move_to(std::size_t end) {
    line_ += count_lines(view_.substr(at_, end - at_));
    if (end > at_) line_starts_ = view_[end - 1] == '\n';
    at_ = end;
  }

  std::size_t after_space(std::size_t from) const {
    while (from < view_.size()) {
      const detail::Utf8Character character = detail::utf8_character(view_, from);
      if (!is_space(character.code)) break;
      from += character.length;
    }
    return from;
  }

  bool has(std::size_t at, std::string_view text) const {
    return view_.substr(std::min(at, view_.size()), text.size()) == text;
  }

  /// Returns the end of what closes a tag at a place, with the white space that it takes away.
  std::optional<std::size_t> end_of_tag(std::size_t at, std::string_view close,
                                        bool is_block) const {
    if (has(at, "-") && has(at + 1, close)) return after_space(at + 1 + close.size());
    if (is_block && has(at, "+") && has(at + 1, close)) return at + 1 + close.size();
    if (!has(at, close)) return std::nullopt;
    const std::size_t end = at + close.size();
    return is_block && has(end, "\n") ? end + 1 : end;
  }

  char sign_at(std::size_t at) const {
    return at < view_.size() && (view_[at] == '-' || view_[at] == '+') ? view_[at] : '\0';
  }

  std::optional<Opening> find_opening() const {
    for (std::size_t at = view_.find('{', at_); at != std::string_view::npos;
         at = view_.find('{', at + 1)) {
      const char next = at + 1 < view_.size() ? view_[at + 1] : '\0';
      if (next != '%' && next != '{' && next != '#') continue;
      const char sign = sign_at(at + 2);
      const std::size_t end = at + 2 + (sign != 0 ? 1 : 0);
      if (next == '{') return Opening{Opening::Kind::kVariable, at, end, sign};
      if (next == '#') return Opening{Opening::Kind::kComment, at, end, sign};
      if (const auto raw = end_of_word_tag(end, "raw", /*trims=*/false)) {
        return Opening{Opening::Kind::kRaw, at, *raw, sign};
      }
      return Opening{Opening::Kind::kBlock, at, end, sign};
    }
    return std::nullopt;
  }

  /// Returns the end of a tag that is a word alone, from within it.
  std::optional<std::size_t> end_of_word_tag(std::size_t at, std::string_view word,
                                             bool trims) const {
    at = after_space(at);
    if (!has(at, word)) return std::nullopt;
    at = after_space(at + word.size());
    if (!trims && has(at, "+")) return std::nullopt;
    const auto end = end_of_tag(at, "%}", /*is_block=*/true);
    // The line end after {% raw %} is text of the template.
    if (end && !trims && has(at, "%}")) return at + 2;
    return end;
  }

  /// Adds the text before a tag, without the white space that the tag takes away.
  void take_data(const Opening& opening) {
    std::string_view text = view_.substr(at_, opening.begin - at_);
    const std::string_view whole = text;
    if (opening.sign == '-') {
      text = text.substr(0, end_without_space(text));
    } else if (opening.sign != '+' && opening.kind != Opening::Kind::kVariable) {
      const std::size_t start = text.rfind('\n') + 1;  // 0 where there is no line end
      const bool begins_line = start > 0 || line_starts_;
      if (begins_line && end_without_space(text.substr(start)) == 0) text = text.substr(0, start);
    }
    if (!text.empty()) add(TokenType::kData, std::string(text));
    move_to(at_ + whole.size());
  }

  static std::size_t end_without_space(std::string_view text) {
    return strip(Text(std::string(text)), Side::kRight).size();
  }

  void skip_comment() {
    for (std::size_t at = at_; at < view_.size(); ++at) {
      if (const auto end = end_of_tag(at, "#}", /*is_block=*/true)) return move_to(*end);
    }
    fail("expected '#}' at the end of a comment, got the end of the template");
  }

  void take_raw() {
    for (std::size_t at = view_.find("{%", at_); at != std::string_view::npos;
         at = view_.find("{%", at + 2)) {
      const char sign = sign_at(at + 2);
      const auto end = end_of_word_tag(at + 2 + (sign != 0 ? 1 : 0), "endraw", /*trims=*/true);
      if (!end) continue;
      take_data({Opening::Kind::kRaw, at, *end, sign});
      return move_to(*end);
    }
    fail("expected {% endraw %}, got the end of the template");
  }

  void take_tag(bool is_block) {
    std::string open;
    while (true) {
      if (open.empty()) {
        if (const auto end = end_of_tag(at_, is_block ? "%}" : "}}", is_block)) {
          add(is_block ? TokenType::kBlockEnd : TokenType::kVariableEnd);
          return move_to(*end);
        }
      }
      if (at_ >= view_.size()) fail("expected the end of a tag, got the end of the template");
      if (const std::size_t end = after_space(at_); end > at_) {
        move_to(end);
      } else if (is_digit(view_[at_])) {
        take_number();
      } else if (is_name_start(view_[at_])) {
        take_name();
      } else if (view_[at_] == '\'' || view_[at_] == '"') {
        take_text(view_[at_]);
      } else {
        take_operator(open);
      }
    }
  }

  std::size_t after_digits(std::size_t at, std::string_view digits = kDigits) const {
    while (at < view_.size() && (digits.find(view_[at]) != std::string_view::npos ||
                                 (view_[at] == '_' && at + 1 < view_.size() &&
                                  digits.find(view_[at + 1]) != std::string_view::npos))) {
      ++at;
    }
    return at;
  }

  /// Returns the end of a float at the present place; none where there is an integer.
  std::optional<std::size_t> end_of_float() const {
    if (at_ > 0 && view_[at_ - 1] == '.') return std::nullopt;
    std::size_t end = after_digits(at_);
    bool is_float = false;
    if (has(end, ".") && end + 1 < view_.size() && is_digit(view_[end + 1])) {
      end = after_digits(end + 1);
      is_float = true;
    }
    if (end < view_.size() && (view_[end] == 'e' || view_[end] == 'E')) {
      const std::size_t digits = end + 1 + (sign_at(end + 1) != 0 ? 1 : 0);
      if (digits < view_.size() && is_digit(view_[digits])) {
        end = after_digits(digits);
        is_float = true;
      }
    }
    return is_float ? std::optional(end) : std::nullopt;
  }

  std::size_t end_of_integer() const {
    if (view_[at_] == '0') {
      const char base = at_ + 1 < view_.size() ? view_[at_ + 1] : '\0';
      const std::string_view digits = base == 'x' || base == 'X'   ? "0123456789abcdefABCDEF"
                                      : base == 'o' || base == 'O' ? "01234567"
                                      : base == 'b' || base == 'B' ? "01"
                                                                   : "";
      const std::size_t end = digits.empty() ? at_ : after_digits(at_ + 2, digits);
      if (end > at_ + 2) return end;
      return after_digits(at_, "0");
    }
    return after_digits(at_);
  }

  void take_number() {
    const auto end_of_real = end_of_float();
    const std::size_t end = end_of_real ? *end_of_real : end_of_integer();
    std::string text(view_.substr(at_, end - at_));
    std::erase(text, '_');
    add(end_of_real ? TokenType::kFloat : TokenType::kInteger, std::move(text));
    move_to(end);
  }

  void take_name() {
    std::size_t end = at_;
    while (end < view_.size() && (is_name_start(view_[end]) || is_digit(view_[end]))) ++end;
    if (end < view_.size() && static_cast<unsigned char>(view_[end]) >= 0x80) {
      fail("expected names of ASCII letters, got another character");
    }
    add(TokenType::kName, std::string(view_.substr(at_, end - at_)));
    move_to(end);
  }

  void take_text(char quote) {
    std::size_t end = at_ + 1;
    while (end < view_.size() && view_[end] != quote) end += view_[end] == '\\' ? 2 : 1;
    if (end >= view_.size()) fail("expected the end of a text, got the end of the template");
    add(TokenType::kText, unescaped(view_.substr(at_ + 1, end - at_ - 1)));
    move_to(end + 1);
  }

  void append_code(std::uint32_t code, std::string& out) const {
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) {
      fail("expected escapes of Unicode characters, got another number");
    }
    std::array<utf8proc_uint8_t, 4> buffer{};
    const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code), buffer.data());
    out.append(reinterpret_cast<const char*>(buffer.data()), static_cast<std::size_t>(size));
  }

  /// Reads the number of an escape, which has `count` digits or, in octal, up to that.
  std::uint32_t escaped_number(std::string_view text, std::size_t& at, std::size_t count,
                               bool is_octal) const {
    std::uint32_t number = 0;
    std::size_t taken = 0;
    constexpr std::string_view kHex = "0123456789abcdef";
    while (taken < count && at < text.size()) {
      const char c =
          text[at] >= 'A' && text[at] <= 'F' ? static_cast<char>(text[at] | 0x20) : text[at];
      const std::size_t digit = kHex.substr(0, is_octal ? 8 : 16).find(c);
      if (digit == std::string_view::npos) break;
      number = number * (is_octal ? 8 : 16) + static_cast<std::uint32_t>(digit);
      ++at;
      ++taken;
    }
    if (!is_octal && taken < count)
      fail(fmt::format("expected {} digits in an escape, got {}", count, taken));
    return number;
  }

  std::string unescaped(std::string_view text) const {
    std::string result;
    for (std::size_t at = 0; at < text.size();) {
      const char c = text[at++];
      if (c != '\\') {
        result += c;
        continue;
      }
      constexpr std::string_view kEscapes = "\\'\"abfnrtv", kMeanings = "\\'\"\a\b\f\n\r\t\v";
      const char escape = text[at];
      if (const std::size_t known = kEscapes.find(escape); known != std::string_view::npos) {
        result += kMeanings[known];
        ++at;
      } else if (escape == '\n') {
        ++at;
      } else if (escape == 'x' || escape == 'u' || escape == 'U') {
        ++at;
        append_code(escaped_number(text, at,
                                   escape == 'x'   ? 2
                                   : escape == 'u' ? 4
                                                   : 8,
                                   false),
                    result);
      } else if (escape >= '0' && escape <= '7') {
        append_code(escaped_number(text, at, 3, true), result);
      } else if (escape == 'N') {
        fail("expected escapes by number, got one by name");
      } else if (static_cast<unsigned char>(escape) >= 0x80) {
        // Python escapes the character before it reads escapes, so that the backslashes pair up.
        const detail::Utf8Character character = detail::utf8_character(text, at);
        const auto code = static_cast<std::uint32_t>(character.code);
        result += code < 0x100     ? fmt::format("\\x{:02x}", code)
                  : code < 0x10000 ? fmt::format("\\u{:04x}", code)
                                   : fmt::format("\\U{:08x}", code);
        at += character.length;
      } else {
        result += '\\';
      }
    }
    return result;
  }

  void take_operator(std::string& open) {
    const auto found = std::find_if(kOperators.begin(), kOperators.end(),
                                    [&](std::string_view op) { return has(at_, op); });
    if (found == kOperators.end()) {
      const auto length = detail::utf8_character(view_, at_).length;
      fail(fmt::format("expected an expression, got '{}'", view_.substr(at_, length)));
    }
    const char c = found->front();
    if (*found == "(" || *found == "[" || *found == "{") {
      open += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (*found == ")" || *found == "]" || *found == "}") {
      if (open.empty() || open.back() != c)
        fail(fmt::format("expected brackets in pairs, got '{}'", c));
      open.pop_back();
    }
    add(TokenType::kOperator, std::string(*found));
    move_to(at_ + found->size());
  }

  std::string source_;
  std::string_view view_;
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_starts_ = true;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

std::string shown(const Token& token) {
  switch (token.type) {
    case TokenType::kData:
      return "text";
    case TokenType::kBlockBegin:
      return "'{%'";
    case TokenType::kBlockEnd:
      return "'%}'";
    case TokenType::kVariableBegin:
      return "'{{'";
    case TokenType::kVariableEnd:
      return "'}}'";
    case TokenType::kText:
      return "a text";
    case TokenType::kEnd:
      return "the end of the template";
    default:
      return fmt::format("'{}'", token.text);
  }
}

}  // namespace prefopt::jinja
