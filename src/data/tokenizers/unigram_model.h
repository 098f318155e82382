// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizers/model.h"
#include "data/tokenizers/spec.h"

namespace prefopt::detail {

/// Finds the tokens that begin a text, byte by byte: a trie whose edges are one hash table.
class TokenTrie {
 public:
  using Id = TokenModel::Id;

  /// Of equal tokens the last counts; empty ones are left out.
  explicit TokenTrie(const std::vector<std::string>& tokens);

  /// Returns -1 if `text` is no token.
  Id find(std::string_view text) const;

  /// Calls `found` with the length and id of each token that `text` begins with, shorter ones
  /// first.
  template <class Found>
  void prefixes(std::string_view text, const Found& found) const {
    std::uint32_t node = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      node = child(node, static_cast<unsigned char>(text[i]));
      if (node == 0) return;
      if (ids_[node] >= 0) found(i + 1, ids_[node]);
    }
  }

 private:
  struct Edge {
    std::uint64_t key = ~std::uint64_t{0};  ///< node and byte
    std::uint32_t child = 0;
  };

  /// Returns 0, the root, without one.
  std::uint32_t child(std::uint32_t node, unsigned char byte) const {
    return edges_[slot_of(key_of(node, byte))].child;
  }
  static std::uint64_t key_of(std::uint32_t node, unsigned char byte) {
    return (std::uint64_t{node} << 8) | byte;
  }
  std::size_t slot_of(std::uint64_t key) const;

  std::vector<Edge> edges_;
  int shift_ = 0;
  std::vector<Id> ids_;  // of nodes; -1 where no token ends
};

/// The tokens of the best sum of scores, as in Kudo 2018 (arXiv:1804.10959), with the choices of
/// the package `tokenizers`: of equal sums the one whose last token is the longest; a character
/// without a token costs the lowest score less 10, and such characters in a row are one unknown.
class UnigramModel final : public TokenModel {
 public:
  /// Throws CheckpointError, led by `name`, without an unknown token.
  UnigramModel(const std::vector<std::string>& tokens, const UnigramSpec& spec,
               std::int64_t unknown_id, std::string_view name);

  void encode(std::string_view word, Scratch& scratch, std::vector<Id>& ids) const override;

 private:
  void find_path(std::string_view word, std::vector<PathNode>& path) const;
  void append_unknown(std::string_view text, std::vector<Id>& ids) const;

  TokenTrie trie_;
  std::vector<double> scores_;
  std::vector<Id> bytes_;  // <0x00> to <0xFF>; -1 all, without a fallback
  Id unknown_id_;
  double unknown_score_;
};

}  // namespace prefopt::detail
