// SPDX-License-Identifier: Apache-2.0
#pragma once

// How a conversation becomes the text that a model was trained on. The formats are those of the
// models' own templates, under names; templates themselves, which are programs, are not run.
//
//   chatml     <|im_start|>ROLE\nTEXT<|im_end|>\n
//   smollm2    ChatML; a conversation without system message gets SmolLM2's
//   qwen2      ChatML; likewise with Qwen2's
//   qwen2.5    ChatML; likewise with Qwen2.5's
//   llama3     <|begin_of_text|>, then <|start_header_id|>ROLE<|end_header_id|>\n\nTEXT<|eot_id|>,
//              white space around the text left out
//   zephyr     <|ROLE|>\nTEXT</s>\n
//   alpaca     "### Instruction:\nTEXT\n\n" and "### Response:TEXT\n\n", after Stanford Alpaca's
//              sentence where there is no system message
//   plain      the texts, a blank line between them
//   dialogue   hh-rlhf's: "\n\nHuman: TEXT", "\n\nAssistant: TEXT"
//
// As in transformers, a text that spells a special token becomes that token when it is tokenized,
// wherever it came from, unless special_tokens_in_text of DataOptions says otherwise for rows.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/records.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"

namespace prefopt {

PREFOPT_API std::vector<std::string_view> chat_format_names();

/// The text of `messages`, with what opens the assistant's next turn where `open_assistant_turn`
/// says so. Throws ConfigError for an unknown format, which names the known ones, and DataError
/// for a role other than system, user and assistant.
PREFOPT_API std::string format_chat(std::string_view format, const std::vector<Message>& messages,
                                    bool open_assistant_turn);

/// The text that ends a turn and is one token of the model; empty for formats that have none, whose
/// completions end in the tokenizer's end token.
PREFOPT_API std::string chat_end_of_turn(std::string_view format);

/// The format that does what a model's own template (Jinja) does, told by the template's text,
/// spacing and quotes aside. Throws ConfigError, led by `where`, for one that is not known.
PREFOPT_API std::string recognize_chat_format(std::string_view chat_template,
                                              std::string_view where);

/// `format`, which has to be known. "auto" is the format that the run which made the model used,
/// else that of the tokenizer's own template, or "dialogue" where it has none. Throws ConfigError,
/// also for a template that is not known.
PREFOPT_API std::string resolve_chat_format(std::string_view format, const Tokenizer& tokenizer);

/// The token that ends a turn of the format that resolve_chat_format gives; empty where there is no
/// such format or token.
PREFOPT_API std::vector<std::int64_t> chat_end_ids(std::string_view format,
                                                   const Tokenizer& tokenizer);

}  // namespace prefopt
