// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <hwy/targets.h>

#include <cstdint>
#include <string>
#include <vector>

namespace prefopt::testing_support {

/// Makes the kernels run as on a machine whose best instructions are `target`, while it lives.
class SimdTarget {
 public:
  explicit SimdTarget(std::int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();
  }
  ~SimdTarget() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().DeInit();
  }
  SimdTarget(const SimdTarget&) = delete;
  SimdTarget& operator=(const SimdTarget&) = delete;
};

/// The targets that the kernels are compiled for and this machine has: AVX-512 and AVX2 where it
/// has them, and always the scalar fallback.
inline std::vector<std::int64_t> simd_targets() {
  std::vector<std::int64_t> targets;
  for (const std::int64_t target : {HWY_AVX3, HWY_AVX2}) {
    if ((hwy::SupportedTargets() & target) != 0) targets.push_back(target);
  }
  targets.push_back(HWY_SCALAR);
  return targets;
}

inline std::string simd_name(std::int64_t target) { return hwy::TargetName(target); }

}  // namespace prefopt::testing_support
