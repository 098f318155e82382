// SPDX-License-Identifier: Apache-2.0
#pragma once

// Preference rows as a file holds them, before tokenization.

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

struct Message {
  std::string role;
  std::string content;
  bool counts = true;  ///< in the loss; false: the file leaves the turn out of training
};

/// Returns the text in the chat format "dialogue" of `prefopt/data/chat.h`, the form of hh-rlhf:
/// `\n\nHuman: …\n\nAssistant: …`.
PREFOPT_API std::string format_dialogue(const std::vector<Message>& messages,
                                        bool open_assistant_turn);

/// Numbers that a row may carry in addition to its texts.
enum class Column {
  kLabel,            ///< `label`, 1 or 0 (true or false): whether a single completion is desirable
  kMargin,           ///< `margin`, or `score_chosen` - `score_rejected`: given reward gap
  kWeight,           ///< `weight`, at least 0
  kLabelProb,        ///< `label_prob`: probability that chosen is the better one
  kChosenWinRate,    ///< `chosen_win_rate`: probability that it beats one of the policy
  kRejectedWinRate,  ///< `rejected_win_rate`
  kAdvantage,        ///< `advantage`: by how much a single completion is better than usual
  kFromReference,    ///< `from_reference`, 0, 1 or 2: neither, chosen or rejected
};

inline constexpr std::array<std::string_view, 8> kColumnKeys = {
    "label",     "margin",        "weight", "label_prob", "chosen_win_rate", "rejected_win_rate",
    "advantage", "from_reference"};

/// A value for each Column; NaN if the row has none.
class RowColumns {
 public:
  RowColumns() { values_.fill(std::numeric_limits<double>::quiet_NaN()); }

  double& operator[](Column column) { return values_[static_cast<std::size_t>(column)]; }
  double operator[](Column column) const { return values_[static_cast<std::size_t>(column)]; }

 private:
  std::array<double, kColumnKeys.size()> values_;
};

/// Factor of each token's log-prob in the sum of a completion; empty: 1 each.
using TokenWeights = std::vector<double>;

/// 1 for each token of a completion that counts, 0 for one that is only context, such as those of a
/// user's turn: it enters no sum, length or mean. Empty: all count.
using TokenMask = std::vector<std::uint8_t>;

/// Bytes [begin, end) of a text.
struct TextRange {
  std::size_t begin = 0, end = 0;
};

/// Origin of the bytes of a text that was made from messages.
struct TextParts {
  std::vector<TextRange> contents = {};  ///< of messages, in order; the format wrote the rest
  std::vector<TextRange> answers = {};   ///< those of them that are the assistant's
  /// The parts that count in the loss, in order; none: all of a completion.
  std::vector<TextRange> counted = {};
  /// The token with which a template ends the completion; empty: with none, so that the tokenizer's
  /// is put after it.
  std::string end = {};
};

/// A fact about a row that was settled by reading it and for which DataOptions have a policy.
enum class RowRemark {
  kEndsWithUser,      ///< turns after the assistant's last one
  kRepeatedPrompt,    ///< a completion that begins with the prompt
  kDifferentPrompts,  ///< completions that begin with other questions or system texts
  kToolCalls,         ///< calls or tools without a text in the chat format
  kReasoning,         ///< reasoning next to a content, likewise
  kSystemTurn,        ///< a system message in a format without a system turn
};

/// A row after its form was recognized: text, or token ids used as they are.
struct PreferenceRow {
  std::string prompt, chosen, rejected;
  std::string gold;  ///< `gold`: a third completion; empty where there is none
  std::vector<std::int64_t> prompt_ids, chosen_ids, rejected_ids, gold_ids;
  TokenWeights chosen_weights, rejected_weights, gold_weights;  ///< one per token of the `_ids`
  TokenMask chosen_mask, rejected_mask, gold_mask;              ///< likewise
  RowColumns columns = {};
  bool tokenized = false;    ///< the `_ids` hold the row
  bool has_rejected = true;  ///< false for SFT rows (`prompt` + `completion`, `text`, `messages`)
  /// Text that ends the completions, one token: the row came from messages in a chat format, whose
  /// text holds its own begin and end tokens. Empty: the tokenizer's are put around the text. Of
  /// a rendered row it is that of a plain answer; a completion's own is in its parts.
  std::string end_of_turn;
  std::int64_t line = 0;       ///< 1-based line in its file
  bool from_messages = false;  ///< the `_parts` say which part of the texts is whose
  bool rendered = false;       ///< by the model's chat template, which writes begin tokens itself
  TextParts prompt_parts, chosen_parts, rejected_parts, gold_parts;
  std::vector<RowRemark> remarks;  ///< each once
};

/// Reads one JSON object. Forms: {prompt, chosen, rejected} as text; {chosen, rejected} with an
/// implicit prompt (for hh-rlhf dialogues up to the last "\n\nAssistant:", else the common text);
/// the same with lists of {role, content}; {prompt_ids, chosen_ids, rejected_ids}; {prompt,
/// completion}, {prompt_ids, completion_ids}, {text}, {messages} for SFT, and with `label` for
/// unpaired losses. A row may have the keys of `Column`, and next to `prompt` a third completion
/// `gold` (or `gold_ids`). Rows of ids may have `chosen_token_weights`, `rejected_token_weights`,
/// `completion_token_weights` and `gold_token_weights`: a number of at least 0 for each id. A sum
/// of log-probs is then the weighted one, for policy and reference. Likewise `chosen_token_mask`
/// and so on, 1 or 0 (true or false): which tokens count at all. Messages become text in the given
/// format of `prefopt/data/chat.h`: the prompt with the opening of the assistant's turn, the
/// completion up to the end of its last one. The prompt of {messages} ends before the assistant's
/// first answer. Options are otherwise the defaults of DataOptions: the assistant's turns count,
/// each with its end of turn; turns after its last one are left out; a prompt that the completions
/// begin with is taken once. Completions of a prompt whose last turn is the assistant's continue
/// that turn. Throws DataError, led by `where`, and ConfigError for an unknown format.
PREFOPT_API PreferenceRow parse_row(std::string_view json, std::string_view where,
                                    std::string_view chat_format = "dialogue");

}  // namespace prefopt
