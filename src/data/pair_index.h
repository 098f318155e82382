// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "prefopt/data/batch.h"

namespace prefopt::detail {

/// Finds the first of some pairs that is equal to another one.
class PairIndex {
 public:
  enum class Key {
    kRow,     ///< all tokens and columns
    kPrompt,  ///< the prompt's tokens
  };

  /// `pairs` has to outlive the index.
  PairIndex(const std::vector<TokenRow>& pairs, Key key) : pairs_(pairs), key_(key) {}

  std::optional<std::size_t> find(const TokenRow& pair) const;
  /// Adds `pairs[place]`, unless one that is equal is there already.
  void add(std::size_t place);

  /// Of pairs that differ.
  std::size_t size() const { return places_.size(); }

 private:
  std::uint64_t hash(const TokenRow& pair) const;
  bool equal(const TokenRow& a, const TokenRow& b) const;

  const std::vector<TokenRow>& pairs_;
  Key key_;
  std::unordered_multimap<std::uint64_t, std::size_t> places_;
};

}  // namespace prefopt::detail
