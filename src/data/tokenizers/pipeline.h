// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "data/tokenizers/spec.h"
#include "prefopt/data/tokenizer.h"

namespace prefopt::detail {

/// Returns the tokenizer of these parts, token for token as in the package `tokenizers`; see
/// make_bpe_tokenizer for what is the same for all. Throws CheckpointError, led by `name`, if the
/// parts are none.
std::shared_ptr<const Tokenizer> make_pipeline(TokenizerSpec spec, std::string name);

}  // namespace prefopt::detail
