// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/target.h"

#include "kernels/cpu/tiles.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/target.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
//
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace prefopt::kernels::cpu {
namespace HWY_NAMESPACE {

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace prefopt::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace prefopt::kernels::cpu {

HWY_EXPORT(target_name);

std::string simd_target() {
  const std::string name = HWY_DYNAMIC_DISPATCH(target_name)();
  return has_tiles() ? name + " and AMX" : name;
}

}  // namespace prefopt::kernels::cpu
#endif
