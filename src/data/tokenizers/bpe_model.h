// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/bpe_merges.h"
#include "data/tokenizers/model.h"
#include "data/tokenizers/spec.h"

namespace prefopt::detail {

/// Byte-pair encoding: the characters of a word, or its bytes, merge by rank.
class BpeModel final : public TokenModel {
 public:
  /// With `of_bytes` words are bytes, and tokens are written in GPT-2's alphabet. Throws
  /// CheckpointError, led by `name`, for tokens or merges that are none.
  BpeModel(const std::vector<std::string>& tokens, const BpeSpec& spec, std::int64_t unknown_id,
           bool of_bytes, std::string_view name);

  void encode(std::string_view word, Scratch& scratch, std::vector<Id>& ids) const override;
  std::string_view safe_cut() const override { return safe_cut_; }

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  /// The tokens of a character, or of a byte.
  struct Symbol {
    Id id = -1;                ///< -1: it is no token
    std::vector<Id> fallback;  ///< by its bytes; empty: it is unknown
  };

  void add_merges(const TokenIndex& index, const BpeSpec& spec, std::string_view name);
  void take_alphabet(const TokenIndex& index);
  void take_characters(const std::vector<std::string>& tokens);
  void find_safe_cut(const BpeSpec& spec);
  Id id_of(char32_t code) const;
  void take_symbols(std::string_view word, std::vector<Id>& ids) const;
  class SymbolWriter;

  std::vector<Id> bytes_;             // <0x00> to <0xFF>; -1 all, without a fallback
  std::vector<Symbol> byte_symbols_;  // of words of bytes
  std::vector<Id> near_ids_;          // of characters below U+3000
  std::unordered_map<char32_t, Id> far_ids_;
  std::unordered_map<std::string, Id, Hash, std::equal_to<>> whole_words_;  // for ignore_merges
  BpeMerges merges_;
  Id unknown_id_;
  bool fuse_unknown_, of_bytes_;
  std::string safe_cut_;
};

}  // namespace prefopt::detail
