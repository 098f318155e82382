// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prefopt::detail {

/// The tokens of a SentencePiece vocabulary of the kind BPE, which stores scores and no merges.
struct ScoredTokens {
  const std::vector<std::string>& tokens;  ///< by id
  const std::vector<double>& scores;
  std::vector<bool> merges;  ///< whether text can become the token
};

/// Returns the merges by which the same tokens arise as in SentencePiece and llama.cpp, where the
/// neighbours merge that make the token of the highest score: each cut of a token into two others,
/// from the highest score to the lowest. Throws CheckpointError, led by `where`, where scores alone
/// do not decide, or where a token has characters that are no token.
std::vector<std::pair<std::string, std::string>> merges_by_score(const ScoredTokens& vocabulary,
                                                                 std::string_view where);

}  // namespace prefopt::detail
