// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/records.h"
#include "prefopt/data/tokenizer.h"

namespace prefopt::detail {

struct ChatDefinition;

/// A chat format in pieces, so that prompt and completion can be cut apart:
///   opening(first message), then for each message opening_of(role) and body(message).
class ChatWriter {
 public:
  /// Throws ConfigError, led by `where`, for an unknown format; for "auto", whose template is not
  /// known, only when it is used: rows of text need no format.
  ChatWriter(std::string_view format, std::string_view where);

  std::string_view name() const;

  /// Returns false for roles other than system, user and assistant.
  static bool knows_role(std::string_view role);
  /// Returns whether results of tools have this role.
  static bool is_tool_role(std::string_view role);
  /// Returns whether the format's template writes a turn of any role under its name.
  bool writes_any_role() const;
  bool has_system_turn() const;

  /// Returns the whole text. Throws DataError, led by `where`, for a role that does not fit.
  std::string text(const std::vector<Message>& messages, bool open_assistant_turn,
                   std::string_view where) const;

  /// Returns the text before the first turn.
  std::string opening(const Message& first) const;
  /// `role` is a known one, or any where writes_any_role().
  std::string opening_of(std::string_view role) const;
  /// Returns the content and what ends the turn.
  std::string body(const Message& message) const;
  /// The parts of body(): the text before the content, the content, end_of_turn() and
  /// between_turns().
  std::string_view before_content(const Message& message) const;
  std::string_view content(const Message& message) const;
  /// Returns the content of a turn that is not at its end, and that of `message`, which continues
  /// it: as the content of both in one, so that white space between them stays; that of the begun
  /// one also before a blank message, since the prompt is one for all completions.
  std::string_view begun_content(const Message& message) const;
  std::string_view continued_content(const Message& begun, const Message& message) const;
  /// Returns the end of body() after the end of the turn: the start of the next one.
  std::string_view between_turns() const;
  std::string_view end_of_turn() const;
  /// Throws DataError, led by `where`, for a system message that comes later and may not.
  template <class Messages>
  void check_system(const Messages& messages, std::string_view where) const {
    for (std::size_t i = 1; i < messages.size(); ++i) {
      if (messages[i].role == "system") check_later_system(i, where);
    }
  }

 private:
  const ChatDefinition& definition() const;
  void check_later_system(std::size_t place, std::string_view where) const;

  const ChatDefinition* definition_;  ///< null for "auto"
  std::string where_;
};

/// Returns whether a text has turns of a person and of an assistant in one of the formats.
bool is_dialogue(std::string_view text);

/// Returns whether two texts of one format differ before the assistant speaks: in a person's turn,
/// or before any turn. False where they are no dialogues.
bool part_in_question(std::string_view a, std::string_view b);

/// Returns the texts that end a turn in any format, each once.
std::vector<std::string_view> ends_of_turns();

/// Returns resolve_chat_format, but "auto" where the tokenizer's template is not known.
std::string chat_format_for_rows(std::string_view format, const Tokenizer& tokenizer);

/// Returns the remark that `rows` rows of messages were written in a format that nothing named;
/// empty where something did.
std::string chat_format_note(std::string_view asked, const Tokenizer& tokenizer, std::int64_t rows);

}  // namespace prefopt::detail
