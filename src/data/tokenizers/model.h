// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/bpe_merges.h"

namespace prefopt::detail {

/// Turns words into tokens.
class TokenModel {
 public:
  using Id = BpeMerges::Id;

  /// The best way to an offset of a word.
  struct PathNode {
    double score = 0;
    std::int32_t begin = -1;  ///< of the last token; -1: no token ends here
    Id id = -1;
  };
  /// Memory that encode() keeps from word to word; one a thread.
  struct Scratch {
    BpeMerges::Scratch merge;
    std::vector<PathNode> path;
    std::vector<std::int32_t> ends;
  };

  virtual ~TokenModel() = default;

  /// Appends the tokens of `word`, which is not empty.
  virtual void encode(std::string_view word, Scratch& scratch, std::vector<Id>& ids) const = 0;

  /// Returns a character before which a word may be cut, where another one lies before it, without
  /// a change to its tokens; empty without one.
  virtual std::string_view safe_cut() const { return {}; }
};

/// Looks tokens up by their text.
class TokenIndex {
 public:
  using Id = TokenModel::Id;

  /// `tokens` outlive this. Of equal ones the last counts.
  explicit TokenIndex(const std::vector<std::string>& tokens);

  /// Throws CheckpointError, led by `name`, if two tokens are equal.
  void check_distinct(std::string_view name) const;

  /// Returns -1 if there is no such token.
  Id find(std::string_view token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? -1 : found->second;
  }

 private:
  const std::vector<std::string>& tokens_;
  std::unordered_map<std::string_view, Id> ids_;
};

/// Returns the tokens <0x00> to <0xFF> by byte; -1: no such token.
std::vector<TokenModel::Id> byte_tokens(const TokenIndex& index);

/// Appends the tokens of all bytes of `text`; returns false, and appends nothing, if one lacks.
bool append_bytes(std::string_view text, const std::vector<TokenModel::Id>& bytes,
                  std::vector<TokenModel::Id>& ids);

}  // namespace prefopt::detail
