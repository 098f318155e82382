// SPDX-License-Identifier: Apache-2.0
#pragma once

// Fields of Hugging Face's `tokenizer_config.json` with a text in more than one form.

#include <array>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizers/json_node.h"

namespace prefopt::detail {

/// Fields and variables of templates that name a special token. The first three are given to
/// templates of rows, the others are not known there.
inline constexpr std::array<const char*, 7> kTokenNames{
    "bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"};
inline constexpr std::span<const char* const> kTokensNotInRows =
    std::span<const char* const>(kTokenNames).subspan(3);

/// Returns "<s>" of "<s>" or {"content": "<s>", …}; empty where there is none. Throws
/// CheckpointError for another form.
std::string token_text(const JsonNode& field);

struct NamedTemplate {
  std::string name, text;
};

/// Returns the templates of the field `chat_template`: one text, which is the one named "default",
/// or a list of named ones. Throws CheckpointError for another form.
std::vector<NamedTemplate> chat_templates(const JsonNode& field);

}  // namespace prefopt::detail
