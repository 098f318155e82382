// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <hwy/targets.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/simd_limit.h"
#include "kernels/cpu/tiles.h"

namespace prefopt::testing_support {

/// AVX-512 with the tile unit.
inline constexpr std::int64_t kTiles = HWY_AVX3 | HWY_AVX3_DL;

/// Makes the kernels run as on a machine whose best instructions are `target`, while it lives.
class SimdTarget {
 public:
  explicit SimdTarget(std::int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();
    detail::allow_tiles(target == kTiles);
  }
  ~SimdTarget() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().DeInit();
    detail::allow_tiles(true);
  }
  SimdTarget(const SimdTarget&) = delete;
  SimdTarget& operator=(const SimdTarget&) = delete;
};

/// The targets that the kernels are compiled for and this machine has: tiles, AVX-512 and AVX2
/// where it has them, and always the scalar fallback.
inline std::vector<std::int64_t> simd_targets() {
  std::vector<std::int64_t> targets;
  if (kernels::cpu::has_tiles()) targets.push_back(kTiles);
  for (const std::int64_t target : {HWY_AVX3, HWY_AVX2}) {
    if ((hwy::SupportedTargets() & target) != 0) targets.push_back(target);
  }
  targets.push_back(HWY_SCALAR);
  return targets;
}

inline std::string simd_name(std::int64_t target) {
  return target == kTiles ? "tiles" : hwy::TargetName(target);
}

}  // namespace prefopt::testing_support
