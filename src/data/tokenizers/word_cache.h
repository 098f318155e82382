// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "data/bpe_merges.h"

namespace prefopt::detail {

/// Tokens of words that were met before; a newer word takes the place of an older one. An entry is
/// a cache line, so a hit costs one access to memory.
class WordCache {
 public:
  using Id = BpeMerges::Id;

  WordCache() : entries_(kEntries) {}

  static bool fits(std::string_view word) { return word.size() <= kMaxBytes; }

  /// Appends the tokens of `word`, which fits, if they are known.
  bool append(std::string_view word, std::size_t hash, std::vector<std::int64_t>& ids) const {
    const Entry& entry = entries_[hash % kEntries];
    if (entry.bytes != word.size() || std::memcmp(entry.text, word.data(), word.size()) != 0) {
      return false;
    }
    ids.insert(ids.end(), entry.ids, entry.ids + entry.count);
    return true;
  }

  void put(std::string_view word, std::size_t hash, const std::vector<Id>& ids) {
    if (ids.size() > kMaxIds) return;
    Entry& entry = entries_[hash % kEntries];
    entry.bytes = static_cast<std::uint8_t>(word.size());
    entry.count = static_cast<std::uint8_t>(ids.size());
    std::memcpy(entry.text, word.data(), word.size());
    std::copy(ids.begin(), ids.end(), entry.ids);
  }

 private:
  static constexpr std::size_t kEntries = std::size_t{1} << 14;
  static constexpr std::size_t kMaxBytes = 30;
  static constexpr std::size_t kMaxIds = 8;

  struct alignas(64) Entry {
    std::uint8_t bytes = 0;  ///< 0: nothing here; no word is empty
    std::uint8_t count = 0;
    char text[kMaxBytes];
    Id ids[kMaxIds];
  };
  static_assert(sizeof(Entry) == 64);

  std::vector<Entry> entries_;
};

}  // namespace prefopt::detail
