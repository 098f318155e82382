// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace prefopt::detail {

/// The merges of a BPE model: which two tokens, side by side, become one, and which go first.
class BpeMerges {
 public:
  using Id = std::int32_t;

  /// Room for `count` merges, at most 2^31.
  explicit BpeMerges(std::size_t count);

  /// Merges are added in order of rank. One that is added again goes to the later rank, as in the
  /// package `tokenizers`.
  void add(Id left, Id right, Id merged);

  /// Memory that apply() keeps from word to word; one a thread.
  struct Scratch {
    struct Symbol {
      std::int32_t before, after;  ///< neighbours; `after` is -1 at the end
    };
    std::vector<Symbol> symbols;
    std::vector<std::uint64_t> queue;
  };

  /// Merges neighbours in `ids` until none can be: the lowest rank first, and of equal ones the
  /// leftmost. At most 2^31 ids.
  void apply(std::vector<Id>& ids, Scratch& scratch) const;

 private:
  struct Slot {
    std::uint64_t pair;
    std::uint32_t rank;
    Id merged;
  };

  std::size_t slot_of(std::uint64_t pair) const;
  const Slot* find(Id left, Id right) const;

  std::vector<Slot> slots_;
  int shift_;
  std::uint32_t next_rank_ = 0;
};

}  // namespace prefopt::detail
