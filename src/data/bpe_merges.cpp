// SPDX-License-Identifier: Apache-2.0
#include "data/bpe_merges.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace prefopt::detail {
namespace {

constexpr std::uint64_t kEmpty = ~std::uint64_t{0};

std::uint64_t pair_of(BpeMerges::Id left, BpeMerges::Id right) {
  return (static_cast<std::uint64_t>(left) << 32) | static_cast<std::uint32_t>(right);
}

}  // namespace

BpeMerges::BpeMerges(std::size_t count) {
  const std::size_t size = std::bit_ceil(2 * count + 2);
  slots_.assign(size, {.pair = kEmpty, .rank = 0, .merged = 0});
  shift_ = 64 - std::countr_zero(size);
}

// Returns where `pair` is or would be: at most half of the slots are taken.
std::size_t BpeMerges::slot_of(std::uint64_t pair) const {
  // Fibonacci hashing: the upper bits of a product by 2^64 over the golden ratio.
  std::size_t at = (pair * 0x9E3779B97F4A7C15ULL) >> shift_;
  while (slots_[at].pair != pair && slots_[at].pair != kEmpty) at = (at + 1) & (slots_.size() - 1);
  return at;
}

const BpeMerges::Slot* BpeMerges::find(Id left, Id right) const {
  const Slot& slot = slots_[slot_of(pair_of(left, right))];
  return slot.pair == kEmpty ? nullptr : &slot;
}

void BpeMerges::add(Id left, Id right, Id merged) {
  const std::uint64_t pair = pair_of(left, right);
  slots_[slot_of(pair)] = {.pair = pair, .rank = next_rank_++, .merged = merged};
}

void BpeMerges::apply(std::vector<Id>& ids, Scratch& scratch) const {
  const auto count = static_cast<std::int32_t>(ids.size());
  auto& symbols = scratch.symbols;
  auto& queue = scratch.queue;
  symbols.resize(ids.size());
  queue.clear();
  // A candidate is its rank and, below it, the place of its left symbol. One whose symbols have
  // changed since stays in the queue and is found out by its rank.
  const auto candidate = [&](std::int32_t at) {
    const std::int32_t after = symbols[at].after;
    const Slot* merge = after < 0 ? nullptr : find(ids[at], ids[after]);
    if (merge == nullptr) return false;
    queue.push_back((static_cast<std::uint64_t>(merge->rank) << 32) | static_cast<unsigned>(at));
    return true;
  };
  const auto push = [&](std::int32_t at) {
    if (candidate(at)) std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };

  for (std::int32_t i = 0; i < count; ++i) {
    symbols[i] = {.before = i - 1, .after = i + 1 < count ? i + 1 : -1};
  }
  for (std::int32_t i = 0; i < count; ++i) candidate(i);
  std::make_heap(queue.begin(), queue.end(), std::greater<>());

  constexpr Id kGone = -1;
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const std::uint64_t top = queue.back();
    queue.pop_back();
    const auto at = static_cast<std::int32_t>(top & 0xFFFFFFFFU);
    const std::int32_t after = symbols[at].after;
    if (ids[at] == kGone || after < 0) continue;
    const Slot* merge = find(ids[at], ids[after]);
    if (merge == nullptr || merge->rank != top >> 32) continue;

    ids[at] = merge->merged;
    ids[after] = kGone;
    symbols[at].after = symbols[after].after;
    if (symbols[at].after >= 0) symbols[symbols[at].after].before = at;
    if (symbols[at].before >= 0) push(symbols[at].before);
    push(at);
  }
  std::erase(ids, kGone);
}

}  // namespace prefopt::detail
