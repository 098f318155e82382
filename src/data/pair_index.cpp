// SPDX-License-Identifier: Apache-2.0
#include "data/pair_index.h"

#include <bit>

#include "core/random.h"

namespace prefopt::detail {
namespace {

std::uint64_t mixed(std::uint64_t state, std::uint64_t value) { return splitmix64(state ^ value); }

std::uint64_t mixed(std::uint64_t state, const std::vector<std::int64_t>& ids) {
  state = mixed(state, ids.size());
  for (const std::int64_t id : ids) state = mixed(state, static_cast<std::uint64_t>(id));
  return state;
}

std::uint64_t mixed(std::uint64_t state, const TokenMask& mask) {
  state = mixed(state, mask.size());
  for (const std::uint8_t x : mask) state = mixed(state, std::uint64_t{x});
  return state;
}

std::uint64_t mixed(std::uint64_t state, const TokenWeights& weights) {
  state = mixed(state, weights.size());
  for (const double x : weights) state = mixed(state, std::bit_cast<std::uint64_t>(x));
  return state;
}

// As bits, so that a value that is not there equals another such.
std::uint64_t column_bits(const TokenRow& pair, std::size_t column) {
  return std::bit_cast<std::uint64_t>(pair.columns[static_cast<Column>(column)]);
}

}  // namespace

std::uint64_t PairIndex::hash(const TokenRow& pair) const {
  std::uint64_t state = mixed(0, pair.prompt);
  if (key_ == Key::kPrompt) return state;
  for (const auto* completion : {&pair.chosen, &pair.rejected, &pair.gold}) {
    state = mixed(state, *completion);
  }
  for (const auto* weights : {&pair.chosen_weights, &pair.rejected_weights, &pair.gold_weights}) {
    state = mixed(state, *weights);
  }
  for (const auto* mask : {&pair.chosen_mask, &pair.rejected_mask, &pair.gold_mask}) {
    state = mixed(state, *mask);
  }
  for (std::size_t i = 0; i < kColumnKeys.size(); ++i) state = mixed(state, column_bits(pair, i));
  return state;
}

bool PairIndex::equal(const TokenRow& a, const TokenRow& b) const {
  if (a.prompt != b.prompt) return false;
  if (key_ == Key::kPrompt) return true;
  for (std::size_t i = 0; i < kColumnKeys.size(); ++i) {
    if (column_bits(a, i) != column_bits(b, i)) return false;
  }
  return a.chosen == b.chosen && a.rejected == b.rejected && a.gold == b.gold &&
         a.chosen_weights == b.chosen_weights && a.rejected_weights == b.rejected_weights &&
         a.gold_weights == b.gold_weights && a.chosen_mask == b.chosen_mask &&
         a.rejected_mask == b.rejected_mask && a.gold_mask == b.gold_mask;
}

std::optional<std::size_t> PairIndex::find(const TokenRow& pair) const {
  const auto [first, last] = places_.equal_range(hash(pair));
  for (auto at = first; at != last; ++at) {
    if (equal(pairs_[at->second], pair)) return at->second;
  }
  return std::nullopt;
}

void PairIndex::add(std::size_t place) {
  if (!find(pairs_[place])) places_.emplace(hash(pairs_[place]), place);
}

}  // namespace prefopt::detail
