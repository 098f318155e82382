// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "data/tokenizers/spec.h"
#include "prefopt/data/tokenizer.h"

namespace prefopt::detail {

/// Throws CheckpointError, led by `where`, for a token that is no UTF-8, which JSON cannot hold.
void check_writable(const TokenizerSpec& spec, std::string_view where);

/// `tokenizer.json` and `tokenizer_config.json`, from which the package `tokenizers` and
/// make_tokenizer give the ids that make_bpe_tokenizer gives of `vocabulary`. Throws
/// what check_writable throws.
FolderFiles written_tokenizer(const TokenizerSpec& spec, std::string_view where);

}  // namespace prefopt::detail
