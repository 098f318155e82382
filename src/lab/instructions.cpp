// SPDX-License-Identifier: Apache-2.0
#include "lab/instructions.h"

#include "core/simd_limit.h"

namespace prefopt::lab {

void hold_instructions() {
  using detail::SimdLimit;
  const auto asked = detail::simd_limit_of_environment();
  if (asked || detail::has_simd(SimdLimit::kAvx2)) {
    detail::hold_simd(asked.value_or(SimdLimit::kAvx2));
  }
}

}  // namespace prefopt::lab
