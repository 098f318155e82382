// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "data/tokenizers/spec.h"
#include "prefopt/data/tokenizer.h"

namespace prefopt::detail {

/// `tokenizer.json` and `tokenizer_config.json`, from which the package `tokenizers` and
/// make_tokenizer give the ids that make_bpe_tokenizer gives of `vocabulary`. Throws
/// CheckpointError, led by `where`, for a token that is no UTF-8, which JSON cannot hold.
FolderFiles written_tokenizer(const TokenizerSpec& spec, std::string_view where);

}  // namespace prefopt::detail
