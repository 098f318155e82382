// SPDX-License-Identifier: Apache-2.0
#include "data/template_text.h"

#include <algorithm>
#include <utility>

namespace prefopt::detail {
namespace {

constexpr std::string_view kDefaultPrompt =
    "{%if not add_generation_prompt is defined%}{%set add_generation_prompt=false%}{%endif%}";

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

bool is_blank_character(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/// Writes the tags of a template, one after the other.
class TemplateWriter {
 public:
  explicit TemplateWriter(std::string_view text) : text_(text) {}

  std::string write() {
    while (at_ < text_.size()) {
      const std::string_view two = text_.substr(at_, 2);
      if (two == "{{" || two == "{%") {
        copy(2);
        write_tag(two == "{{" ? "}}" : "%}");
      } else {
        copy(1);
      }
    }
    return std::move(result_);
  }

 private:
  void copy(std::size_t count) {
    at_ = std::min(at_, text_.size());  // a text may end within a literal
    result_ += text_.substr(at_, count);
    at_ += count;
  }

  void write_tag(std::string_view end) {
    while (at_ < text_.size() && text_.substr(at_, 2) != end) {
      const char c = text_[at_];
      if (c == '\'' || c == '"') {
        write_literal(c);
      } else if (is_blank_character(c)) {
        skip_blanks();
      } else if (!write_member()) {
        copy(1);
      }
    }
    copy(2);
  }

  // One space where words would grow together, or an operator to a tag that trims.
  void skip_blanks() {
    while (at_ < text_.size() && is_blank_character(text_[at_])) ++at_;
    if (at_ == text_.size()) return;
    const char next = text_[at_];
    const bool words = is_word(next) && is_word(result_.back());
    const bool opens = result_.ends_with("{{") || result_.ends_with("{%");
    if (words || (opens && (next == '-' || next == '+'))) result_ += ' ';
  }

  // Quotes within the text are escaped, and nothing else but the escape itself.
  void write_literal(char quote) {
    ++at_;
    result_ += '\'';
    while (at_ < text_.size() && text_[at_] != quote) {
      char c = text_[at_++];
      if (c == '\\' && at_ < text_.size()) {
        const char escaped = text_[at_++];
        const bool known = escaped == 'n' || escaped == 't' || escaped == 'r' || escaped == '\\' ||
                           escaped == '\'' || escaped == '"';
        if (!known) result_ += '\\';  // left as it is, in Jinja too
        c = escaped == 'n' ? '\n' : escaped == 't' ? '\t' : escaped == 'r' ? '\r' : escaped;
        if (!known) {
          result_ += c;
          continue;
        }
      }
      if (c == '\'' || c == '\\') result_ += '\\';
      result_ += c;
    }
    ++at_;
    result_ += '\'';
  }

  // `.role` and `.content` of a message.
  bool write_member() {
    for (const std::string_view name : {"role", "content"}) {
      const std::string_view rest = text_.substr(at_);
      const bool is_it = rest.starts_with('.') && rest.substr(1).starts_with(name) &&
                         (rest.size() == name.size() + 1 || !is_word(rest[name.size() + 1]));
      const bool of_value = is_word(result_.back()) || result_.back() == ']';
      if (!is_it || !of_value) continue;
      result_.append("['").append(name).append("']");
      at_ += name.size() + 1;
      return true;
    }
    return false;
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::string result_;
};

}  // namespace

std::string canonical_template(std::string_view text) {
  std::string result = TemplateWriter(text).write();
  while (!result.empty() && is_blank_character(result.back())) result.pop_back();
  if (result.starts_with(kDefaultPrompt)) result.erase(0, kDefaultPrompt.size());
  return result;
}

}  // namespace prefopt::detail
