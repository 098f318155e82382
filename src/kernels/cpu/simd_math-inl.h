// SPDX-License-Identifier: Apache-2.0
// Functions on vectors, compiled once for each SIMD target; Highway's foreach_target includes this
// file again and again, hence no #pragma once.
#if defined(PREFOPT_SIMD_MATH_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef PREFOPT_SIMD_MATH_INL_H
#undef PREFOPT_SIMD_MATH_INL_H
#else
#define PREFOPT_SIMD_MATH_INL_H
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace prefopt::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// e^x for x <= 88, NaN for NaN. In float32 within 2 ulp, and 0 below -88, where the last normal
/// number is near; hn::Exp takes twice the operations to give subnormal numbers there.
template <class D>
HWY_INLINE hn::Vec<D> exp_of(D d, hn::Vec<D> x) {
  if constexpr (sizeof(hn::TFromD<D>) == sizeof(double)) {
    return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
  } else {
    const hn::RebindToSigned<D> integers;
    const auto least = hn::Set(d, -88.0f);
#if HWY_TARGET == HWY_SCALAR
    x = hn::IfThenElse(hn::Lt(x, least), least, x);
#else
    x = hn::Max(least, x);  // the second one where either is NaN
#endif
    // The sum's last bits are k + 127 for the integer k nearest to x / log 2: the exponent of 2^k.
    // It is 0, and so is the power, for k = -127.
    const auto magic = hn::Set(d, 12582912.0f + 127.0f);
    const auto sum = hn::MulAdd(x, hn::Set(d, 1.44269504f), magic);
    const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(integers, sum)));
    const auto k = hn::Sub(sum, magic);
#if HWY_TARGET == HWY_SCALAR
    // Without a fused operation k log 2 has to be taken away in two parts, the first of them exact.
    const auto most = hn::NegMulAdd(k, hn::Set(d, 0.693359375f), x);
    const auto r = hn::NegMulAdd(k, hn::Set(d, -2.12194440e-4f), most);
#else
    const auto r = hn::NegMulAdd(k, hn::Set(d, 0.693147182f), x);
#endif
    // e^r on |r| <= log(2) / 2: a relative minimax polynomial, off by 3e-9.
    auto p = hn::Set(d, 1.38145941e-3f);
    p = hn::MulAdd(p, r, hn::Set(d, 8.36871751e-3f));
    p = hn::MulAdd(p, r, hn::Set(d, 4.16683890e-2f));
    p = hn::MulAdd(p, r, hn::Set(d, 1.66665211e-1f));
    p = hn::MulAdd(p, r, hn::Set(d, 4.99999940e-1f));
    p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
    p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
    return hn::Mul(p, power);
  }
}

template <class D>
HWY_INLINE hn::Vec<D> tanh_of(D d, hn::Vec<D> x) {
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Tanh(d, x));
}

}  // namespace HWY_NAMESPACE
}  // namespace prefopt::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif
