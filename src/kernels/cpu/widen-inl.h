// SPDX-License-Identifier: Apache-2.0
// Numbers of a low precision in float, compiled once for each SIMD target; Highway's foreach_target
// includes this file again and again, hence no #pragma once.
#if defined(PREFOPT_WIDEN_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef PREFOPT_WIDEN_INL_H
#undef PREFOPT_WIDEN_INL_H
#else
#define PREFOPT_WIDEN_INL_H
#endif

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace prefopt::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
void widen(const T* source, std::int64_t size, T* out) {
  std::copy(source, source + size, out);
}

inline void widen(const c10::Half* source, std::int64_t size, float* out) {
  std::int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const hn::Rebind<hwy::float16_t, decltype(d)> halves;
  const auto* in = reinterpret_cast<const hwy::float16_t*>(source);
  for (; i + lanes <= size; i += lanes) {
    hn::StoreU(hn::PromoteTo(d, hn::LoadU(halves, in + i)), d, out + i);
  }
#endif
  for (; i < size; ++i) out[i] = static_cast<float>(source[i]);
}

// A plain loop of integer operations, which the compiler makes vectors of for each target.
inline void widen(const c10::BFloat16* source, std::int64_t size, float* out) {
  for (std::int64_t i = 0; i < size; ++i) {
    const std::uint32_t bits = std::uint32_t{source[i].x} << 16;
    std::memcpy(out + i, &bits, sizeof bits);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace prefopt::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif
