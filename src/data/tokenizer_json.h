// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "data/tokenizers/spec.h"

namespace prefopt::detail {

/// Reads a Hugging Face `tokenizer.json` and the settings next to it; see make_tokenizer.
TokenizerSpec read_tokenizer_json(const std::string& path);

}  // namespace prefopt::detail
