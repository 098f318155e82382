// SPDX-License-Identifier: Apache-2.0
#pragma once

// Checks that every DecodeSession makes of its input.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <vector>

namespace prefopt::detail {

/// Throws DataError for an id outside the vocabulary. On the CPU only: elsewhere the check would
/// stop the device, and the embedding kernel makes it anyway.
void check_token_ids(const at::Tensor& ids, std::int64_t vocab_size, std::string_view where);

/// Throws ShapeError for no or an empty prompt, DataError for an id outside the vocabulary.
void check_prompts(const std::vector<std::vector<std::int64_t>>& prompts, std::int64_t vocab_size);

/// `tokens` must be [sequences] int64.
void check_appended_tokens(const at::Tensor& tokens, std::int64_t sequences,
                           std::int64_t vocab_size);

/// As many lists as sequences, none of them empty; DataError for an id outside the vocabulary.
void check_appended_lists(const std::vector<std::vector<std::int64_t>>& tokens,
                          std::int64_t sequences, std::int64_t vocab_size);

/// Throws ShapeError for none, DataError for places not ascending or not below `sequences`.
void check_kept(const std::vector<std::int64_t>& kept, std::int64_t sequences);

}  // namespace prefopt::detail
