// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "data/tokenizers/json_node.h"
#include "data/tokenizers/spec.h"

// The parts of a `tokenizer.json`. A part or field that is not known here would change tokens
// unseen and is a CheckpointError.

namespace prefopt::detail {

void read_model(const JsonNode& model, TokenizerSpec& spec);
std::vector<NormalizerStep> read_normalizer(const JsonNode& normalizer);
std::vector<PreTokenizerStep> read_pre_tokenizer(const JsonNode& pre_tokenizer);
std::vector<DecoderStep> read_decoder(const JsonNode& decoder);

/// `{"String": …}` or `{"Regex": …}`, where Replace and Split have it.
struct JsonPattern {
  std::string text;
  bool is_regex = false;
};
JsonPattern read_pattern(const JsonNode& pattern);

Replace read_replace(const JsonNode& replace);

/// Metaspace, which is a pre-tokenizer and a decoder.
Metaspace read_metaspace(const JsonNode& metaspace);

}  // namespace prefopt::detail
