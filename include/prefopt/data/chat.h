// SPDX-License-Identifier: Apache-2.0
#pragma once

// Conversations as the text that a model was trained on. The formats are those of known templates,
// under names; docs/chat-templates.md says when a model's own template is rendered instead.
//
//   chatml     <|im_start|>ROLE\nTEXT<|im_end|>\n
//   smollm2    ChatML; a conversation without system message gets SmolLM2's
//   qwen2      ChatML; likewise with Qwen2's
//   qwen2.5    ChatML; likewise with Qwen2.5's
//   llama3     <|begin_of_text|>, then <|start_header_id|>ROLE<|end_header_id|>\n\nTEXT<|eot_id|>,
//              white space around the text left out
//   zephyr     <|ROLE|>\nTEXT</s>\n
//   alpaca     "### Instruction:\nTEXT\n\n" and "### Response:TEXT\n\n", after Stanford Alpaca's
//              sentence if there is no system message
//   plain      the texts, a blank line between them
//   dialogue   hh-rlhf's: "\n\nHuman: TEXT", "\n\nAssistant: TEXT"
//
// As in transformers, text that spells a special token becomes that token when it is tokenized,
// whatever its origin, unless special_tokens_in_text of DataOptions is set otherwise for rows.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/records.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"

namespace prefopt {

PREFOPT_API std::vector<std::string_view> chat_format_names();

/// Returns the text of `messages`, followed by the opening of the assistant's next turn if
/// `open_assistant_turn` is set. Throws ConfigError for an unknown format, which names the known
/// ones, and DataError for a role other than system, user and assistant.
PREFOPT_API std::string format_chat(std::string_view format, const std::vector<Message>& messages,
                                    bool open_assistant_turn);

/// Returns the text that ends a turn and is one token of the model; empty for formats without one,
/// whose completions end in the tokenizer's end token.
PREFOPT_API std::string chat_end_of_turn(std::string_view format);

/// Returns the format of a model's own template (Jinja), recognized by the template's text apart
/// from spacing and quotes. Throws ConfigError, led by `where`, for one that is not known.
PREFOPT_API std::string recognize_chat_format(std::string_view chat_template,
                                              std::string_view where);

/// Returns `format`, which has to be known. "auto" is the format of the run that made the model,
/// else that of the tokenizer's template, or "dialogue" without one. Throws ConfigError, also for a
/// template that is not known.
PREFOPT_API std::string resolve_chat_format(std::string_view format, const Tokenizer& tokenizer);

/// Returns the token that ends a turn of the format of resolve_chat_format, or of the tokenizer's
/// own template where it has no format here; empty if there is no such token.
PREFOPT_API std::vector<std::int64_t> chat_end_ids(std::string_view format,
                                                   const Tokenizer& tokenizer);

}  // namespace prefopt
