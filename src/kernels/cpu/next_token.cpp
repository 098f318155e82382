// SPDX-License-Identifier: Apache-2.0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/next_token.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
//
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/cpu/next_token.h"
#include "kernels/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace prefopt::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
T highest(const T* row, std::int64_t size) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto most = hn::Set(d, -std::numeric_limits<T>::infinity());
  auto poison = hn::Zero(d);  // NaN once a NaN was seen: a maximum may forget it
  std::int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    const auto logits = hn::LoadU(d, row + i);
    most = hn::Max(most, logits);
    poison = hn::IfThenElse(hn::IsNaN(logits), logits, poison);
  }
  T result = hn::GetLane(hn::MaxOfLanes(d, most));
  T nan = hn::GetLane(hn::SumOfLanes(d, poison));
  for (; i < size; ++i) {
    if (row[i] != row[i]) nan = row[i];
    result = std::max(result, row[i]);
  }
  return nan == nan ? result : nan;
}

// Independent sums, so that additions need not wait for each other.
template <class T>
double sum_in_double(const T* HWY_RESTRICT numbers, std::int64_t size) {
  constexpr std::int64_t kSums = 16;
  double sums[kSums] = {};
  std::int64_t i = 0;
  for (; i + kSums <= size; i += kSums) {
    for (std::int64_t j = 0; j < kSums; ++j) sums[j] += static_cast<double>(numbers[i + j]);
  }
  for (; i < size; ++i) sums[0] += static_cast<double>(numbers[i]);
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

template <class T>
void weigh(const T* HWY_RESTRICT row, std::int64_t size, T highest, double temperature,
           T* HWY_RESTRICT weights, double* HWY_RESTRICT sums) {
  // Finite and not 0, so that neither 0 nor -inf times it is NaN.
  const auto slope =
      static_cast<T>(std::clamp(1 / temperature, static_cast<double>(std::numeric_limits<T>::min()),
                                static_cast<double>(std::numeric_limits<T>::max())));
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto weight = [&](auto tag, std::int64_t i) HWY_ATTR {
    const auto below = hn::Sub(hn::LoadU(tag, row + i), hn::Set(tag, highest));
    hn::StoreU(exp_of(tag, hn::Mul(below, hn::Set(tag, slope))), tag, weights + i);
  };
  for (std::int64_t first = 0; first < size; first += kWeightsOfSum) {
    const std::int64_t last = std::min(size, first + kWeightsOfSum);
    std::int64_t i = first;
    for (; i + lanes <= last; i += lanes) weight(d, i);
    for (; i < last; ++i) weight(hn::CappedTag<T, 1>(), i);
    sums[first / kWeightsOfSum] = sum_in_double(weights + first, last - first);
  }
}

// A name for each type: what is exported to the dispatcher cannot be a template.
#define PREFOPT_KERNELS(T)                                                                   \
  T highest_##T(const T* row, std::int64_t size) { return highest(row, size); }              \
  void weigh_##T(const T* row, std::int64_t size, T highest, double temperature, T* weights, \
                 double* sums) {                                                             \
    weigh(row, size, highest, temperature, weights, sums);                                   \
  }

PREFOPT_KERNELS(float)
PREFOPT_KERNELS(double)

#undef PREFOPT_KERNELS

}  // namespace HWY_NAMESPACE
}  // namespace prefopt::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace prefopt::kernels::cpu {

#define PREFOPT_KERNELS(T)                                                                       \
  HWY_EXPORT(highest_##T);                                                                       \
  HWY_EXPORT(weigh_##T);                                                                         \
  template <>                                                                                    \
  T highest_logit(const T* row, std::int64_t size) {                                             \
    return HWY_DYNAMIC_DISPATCH(highest_##T)(row, size);                                         \
  }                                                                                              \
  template <>                                                                                    \
  void token_weights(const T* row, std::int64_t size, T highest, double temperature, T* weights, \
                     double* sums) {                                                             \
    HWY_DYNAMIC_DISPATCH(weigh_##T)(row, size, highest, temperature, weights, sums);             \
  }

PREFOPT_KERNELS(float)
PREFOPT_KERNELS(double)

#undef PREFOPT_KERNELS

}  // namespace prefopt::kernels::cpu
#endif
