// SPDX-License-Identifier: Apache-2.0
#pragma once

// From messages to the texts of a row: what is prompt and what completion, and whose bytes are
// whose.

#include <optional>
#include <string_view>
#include <vector>

#include "data/chat_template.h"
#include "data/chat_writer.h"
#include "data/turn.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/records.h"

namespace prefopt::detail {

struct ConversationRules {
  const ChatWriter& chat;
  std::string_view where;  ///< leads errors
  LossOn loss_on;
  bool removes_repeats;  ///< a prompt that a completion begins with
  /// The template that writes the row, with what the row gives to it; null: `chat` does.
  const ChatTemplate* chat_template = nullptr;
  const TemplateRow* template_row = nullptr;
  bool prompt_alone = false;  ///< completions are not written
};

/// Messages of a row with completions. `prompt` empty: what the completions begin with alike.
struct Conversation {
  Turns prompt, chosen;
  std::optional<Turns> rejected = {}, gold = {};
};

/// Returns the row's texts, their parts and remarks. Throws LineError for completions without a
/// turn that counts and for a system message where the format may not have one.
PreferenceRow conversation_row(Conversation conversation, const ConversationRules& rules);

/// Returns the same of {messages}: the prompt is what comes before the first answer that counts, or
/// with LossOn::kAll the opening of the first turn, where the format has tokens for it.
PreferenceRow whole_conversation_row(Turns messages, const ConversationRules& rules);

/// Adds a remark that the row does not have yet.
void add_remark(PreferenceRow& row, RowRemark remark);

}  // namespace prefopt::detail
