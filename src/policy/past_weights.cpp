// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/past_weights.h"

#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>

#include "core/random.h"
#include "prefopt/error.h"

namespace prefopt {

PastWeights::PastWeights(const Policy& policy, std::int64_t keep)
    : added_(at::zeros({}, at::kLong)) {
  if (keep < 1) {
    throw ConfigError(fmt::format("past weights: expected keep of at least 1, got {}", keep));
  }
  for (std::int64_t i = 0; i < keep; ++i) slots_.emplace_back(policy);
}

void PastWeights::add(const Policy& policy) {
  const auto added = added_.item<std::int64_t>();
  slots_[static_cast<std::size_t>(added % std::ssize(slots_))].take(policy);
  added_.fill_(added + 1);
}

std::int64_t PastWeights::size() const {
  return std::min<std::int64_t>(added_.item<std::int64_t>(), std::ssize(slots_));
}

const WeightSnapshot& PastWeights::at(std::int64_t i) const {
  if (i < 0 || i >= size()) {
    throw ConfigError(fmt::format("past weights: expected a place in [0, {}), got {}", size(), i));
  }
  const std::int64_t number = added_.item<std::int64_t>() - size() + i;
  return slots_[static_cast<std::size_t>(number % std::ssize(slots_))];
}

std::int64_t PastWeights::pick(std::int64_t seed, std::int64_t round) const {
  if (size() == 0) {
    throw ConfigError("past weights: expected at least one snapshot to pick from, got none");
  }
  const std::uint64_t spread = splitmix64(static_cast<std::uint64_t>(seed));
  const std::uint64_t drawn = splitmix64(spread ^ static_cast<std::uint64_t>(round));
  const double share = static_cast<double>(drawn >> 11) * 0x1p-53;  // in [0, 1)
  return static_cast<std::int64_t>(share * static_cast<double>(size()));
}

std::vector<std::pair<std::string, at::Tensor>> PastWeights::state() const {
  std::vector<std::pair<std::string, at::Tensor>> tensors{{"added", added_}};
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    for (auto& [name, value] : slots_[i].state()) {
      tensors.emplace_back(fmt::format("{}.{}", i, name), value);
    }
  }
  return tensors;
}

RandomPastReference::RandomPastReference(const Policy& policy, std::int64_t keep, std::int64_t seed)
    : present_(policy, {.rule = MovingRule::kHard, .update_steps = kNeverUpdate}),
      past_(policy, keep),
      seed_(seed) {}

void RandomPastReference::start_round(Policy& policy, std::int64_t round) {
  past_.add(policy);
  const std::int64_t place = past_.pick(seed_, round);
  if (place == past_.size() - 1) return present_.update_now(policy);
  const BorrowedWeights borrowed(policy, past_.at(place));
  present_.update_now(policy);
}

at::Tensor RandomPastReference::sequence_logps(const TokenBatch& batch) {
  return present_.sequence_logps(batch);
}

at::Tensor RandomPastReference::token_logps(const TokenBatch& batch) {
  return present_.token_logps(batch);
}

at::Tensor RandomPastReference::tempered_token_logps(const TokenBatch& batch, double temperature) {
  return present_.tempered_token_logps(batch, temperature);
}

Policy* RandomPastReference::policy() { return present_.policy(); }

std::vector<std::pair<std::string, at::Tensor>> RandomPastReference::state() const {
  std::vector<std::pair<std::string, at::Tensor>> tensors = present_.state();
  for (auto& [name, value] : past_.state()) tensors.emplace_back("past." + name, value);
  return tensors;
}

}  // namespace prefopt
