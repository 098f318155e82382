// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/random.h"

namespace prefopt::detail {

/// Returns the seed of fresh samples in a step; those of different steps have nothing in common.
inline std::int64_t seed_of_step(std::int64_t seed, std::int64_t step) {
  // One more step of the generator's own increment for each step of training.
  const auto state = static_cast<std::uint64_t>(seed) +
                     0x9e3779b97f4a7c15ULL * (static_cast<std::uint64_t>(step) + 1);
  return static_cast<std::int64_t>(splitmix64(state));
}

}  // namespace prefopt::detail
