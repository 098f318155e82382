// SPDX-License-Identifier: Apache-2.0
#pragma once

// Preference rows as they stand in a file, before tokenization.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

struct Message {
  std::string role;
  std::string content;
};

/// The chat format "dialogue" of `prefopt/data/chat.h`: `\n\nHuman: …\n\nAssistant: …`, the form of
/// hh-rlhf.
PREFOPT_API std::string format_dialogue(const std::vector<Message>& messages,
                                        bool open_assistant_turn);

/// A row after its form was recognized: text, or token ids used as they are.
struct PreferenceRow {
  std::string prompt, chosen, rejected;
  std::vector<std::int64_t> prompt_ids, chosen_ids, rejected_ids;
  bool tokenized = false;    ///< the `_ids` hold the row
  bool has_rejected = true;  ///< false for SFT rows (`prompt` + `completion`, `text`, `messages`)
  /// What ends the completions, one token: the row came from messages in a chat format, whose text
  /// holds begin and end tokens of its own. Empty: the tokenizer's are put around the text.
  std::string end_of_turn;
  std::int64_t line = 0;  ///< 1-based line in its file
};

/// Reads one JSON object. Forms: {prompt, chosen, rejected} as text; {chosen, rejected} with an
/// implicit prompt (for hh-rlhf dialogues up to the last "\n\nAssistant:", else the common text);
/// the same with lists of {role, content}; {prompt_ids, chosen_ids, rejected_ids};
/// {prompt, completion}, {prompt_ids, completion_ids}, {text}, {messages} for SFT. Messages become
/// text in the given format of `prefopt/data/chat.h`: the prompt with the opening of the
/// assistant's turn, the completion up to the end of its last one. Throws DataError, led by
/// `where`, and ConfigError for an unknown format.
PREFOPT_API PreferenceRow parse_row(std::string_view json, std::string_view where,
                                    std::string_view chat_format = "dialogue");

}  // namespace prefopt
