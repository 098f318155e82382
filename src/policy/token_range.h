// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/policy/policy.h"

namespace prefopt::detail {

/// Throws DataError, led by `where`, for a token id that a model of this vocabulary has no row for.
void check_token_range(const std::vector<TokenRow>& pairs, std::int64_t vocab_size,
                       std::string_view where);

/// Throws DataError, led by `where`, for a row that is longer than the policy can take.
void check_row_lengths(const std::vector<TokenRow>& pairs, const Policy& policy,
                       std::string_view where);

/// Tokens of a pair in one stream, unless its completions begin alike.
std::int64_t tokens_of(const TokenRow& pair);

}  // namespace prefopt::detail
