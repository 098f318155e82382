// SPDX-License-Identifier: Apache-2.0
#pragma once

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

  /// False for roles other than system, user and assistant.
  static bool knows_role(std::string_view role);

  /// All of it. Throws DataError, led by `where`, for a role that does not fit.
  std::string text(const std::vector<Message>& messages, bool open_assistant_turn,
                   std::string_view where) const;

  /// What stands before the first turn.
  std::string opening(const Message& first) const;
  std::string opening_of(std::string_view role) const;
  /// The content and what ends the turn.
  std::string body(const Message& message) const;
  /// What body() ends with after the end of the turn: the start of the next one.
  std::string_view between_turns() const;
  std::string_view end_of_turn() const;
  /// Throws DataError, led by `where`, for a system message that comes later and may not.
  void check_system(const std::vector<Message>& messages, std::string_view where) const;

 private:
  const ChatDefinition& definition() const;

  const ChatDefinition* definition_;  ///< null for "auto"
  std::string where_;
};

/// resolve_chat_format, but "auto" where the tokenizer's template is not known.
std::string chat_format_for_rows(std::string_view format, const Tokenizer& tokenizer);

/// The remark that `rows` rows of messages were written in a format that nothing named; empty where
/// something did.
std::string chat_format_note(std::string_view asked, const Tokenizer& tokenizer, std::int64_t rows);

}  // namespace prefopt::detail
