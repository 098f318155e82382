// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/model/decoder.h"

namespace prefopt::detail {

/// Throws DataError, led by `where`, for a token id that a model of this vocabulary has no row for.
void check_token_range(const std::vector<TokenPair>& pairs, std::int64_t vocab_size,
                       std::string_view where);

/// Throws DataError, led by `where`, for a row that is longer than the model's sliding window.
void check_row_lengths(const std::vector<TokenPair>& pairs, const Decoder& model,
                       std::string_view where);

/// Tokens of a pair in one stream, unless its completions begin alike.
std::int64_t tokens_of(const TokenPair& pair);

}  // namespace prefopt::detail
