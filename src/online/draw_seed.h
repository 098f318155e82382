// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>

namespace prefopt::detail {

/// Users of random numbers in a round, so that no two of them share any.
enum DrawUser : std::int64_t {
  kPromptDraws,
  kSourceDraws,
  kRollInDraws,
  kSelectionDraws,
  kOrderDraws,
  kReplayDraws,
  kEvaluationDraws,
  kRoundDraws,
  kExtraPromptDraws,
  kPriorityDraws,
  kFilterDraws,
  kImitationDraws,
  kEnvironmentDraws,
  kTreeDraws
};

/// Returns a seed that mixes `seed` with the parts (splitmix64, Steele et al. 2014).
inline std::int64_t draw_seed(std::int64_t seed, std::initializer_list<std::int64_t> parts) {
  auto state = static_cast<std::uint64_t>(seed);
  const auto mix = [&](std::uint64_t part) {
    state += part + 0x9e3779b97f4a7c15U;
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9U;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebU;
    state ^= state >> 31;
  };
  for (const std::int64_t part : parts) mix(static_cast<std::uint64_t>(part));
  return static_cast<std::int64_t>(state >> 1);  // not negative, as seeds of options are
}

}  // namespace prefopt::detail
