// SPDX-License-Identifier: Apache-2.0
#pragma once

// The model's own chat template, with what a conversation and its tokenizer give to it.

#include <cstddef>
#include <ctime>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "data/turn.h"
#include "jinja/template.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"

namespace prefopt::detail {

/// Returns a message as transformers hands it to a template: its reasoning, under the first of
/// kTemplateReasoningKeys that is not null, is also `thinking` and `reasoning_content`.
Json with_reasoning_names(const Json& message);

/// The parts of a row that the template gets apart from its messages.
struct TemplateRow {
  Json tools = nullptr;             ///< null: none
  Json variables = Json::object();  ///< `chat_template_kwargs`
};

/// A conversation as the template writes it: a text, and for each byte the part of the row that it
/// is from.
class RenderedChat {
 public:
  enum class Part { kContent, kFields, kReasoning };

  explicit RenderedChat(jinja::Text text);

  const std::string& text() const { return text_.bytes(); }
  std::size_t size() const { return text_.size(); }
  /// Returns whether a byte is a variable's, not the template's.
  bool is_given(std::size_t byte) const;
  /// Returns the turn that a byte is from; none for the template's, and for those of tools and of
  /// other variables. What continues a begun turn is counted after all turns.
  std::optional<std::size_t> turn_of(std::size_t byte) const;
  /// Returns whether a block of the template marks the byte as the assistant's.
  bool is_generated(std::size_t byte) const;

  /// Return the place of the first byte of a turn, and the one after its last; none where the text
  /// has nothing of it.
  std::optional<std::size_t> begin_of(std::size_t turn) const;
  std::optional<std::size_t> end_of(std::size_t turn) const;
  bool holds(std::size_t turn, Part part) const;
  bool holds_tools() const;

 private:
  /// From the first byte of an origin to the one after its last.
  struct Span {
    std::size_t begin, end;
  };

  jinja::Text text_;
  std::map<jinja::Origin, Span> spans_;
};

class ChatTemplate {
 public:
  /// A template that cannot be read is an error when it is used: rows of text need none.
  /// `variables` are those of all conversations, an object; a row's win.
  explicit ChatTemplate(const Tokenizer& tokenizer, Json variables = Json::object());

  /// Returns the text of the turns and, if `opens_answer` is set, the opening of an answer. Throws
  /// ConfigError for a template that cannot be read, and LineError, led by `where`, for messages
  /// that it does not take.
  RenderedChat render(const Turns& turns, const TemplateRow& row, bool opens_answer,
                      std::string_view where) const;
  bool has_generation() const;
  bool has_variables() const { return !variables_.empty(); }
  /// Returns whether the template asks for a variable. Throws as `render` where it cannot be read.
  bool reads(std::string_view variable) const { return parsed().reads(variable); }

  /// Returns the token that ends an answer, as the template writes it after one; empty: none does.
  const std::string& end_of_turn() const { return end_of_turn_; }

  /// The end of an answer: the place after the token that ends it, and that token; the end of the
  /// text and no token where nothing ends it.
  struct End {
    std::size_t place;
    std::string token;
  };
  /// Returns the end of the last answer in the text that follows its last byte.
  End end_in(std::string_view text) const;

 private:
  const jinja::Template& parsed() const;
  jinja::Variables variables_of(const Turns& turns, const TemplateRow& row,
                                bool opens_answer) const;
  std::string find_end_of_turn() const;

  const Tokenizer& tokenizer_;
  Json variables_;
  std::optional<jinja::Template> template_;
  std::exception_ptr defect_;
  std::tm now_;
  std::string end_of_turn_;
};

/// Returns the template that rows in the options' `chat_format` may be written with: for "auto" the
/// tokenizer's, for a name the tokenizer's where it is that format's; else null.
/// `tokenizer` has to outlive it. Throws ConfigError for `chat_template_kwargs` that are no object,
/// that no template reads, or that rows give themselves.
std::unique_ptr<const ChatTemplate> chat_template_for_rows(const DataOptions& options,
                                                           const Tokenizer& tokenizer);

/// The names of variables that a row's conversation gives.
bool is_given_by_rows(std::string_view variable);

}  // namespace prefopt::detail
