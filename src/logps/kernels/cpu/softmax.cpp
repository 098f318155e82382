// SPDX-License-Identifier: Apache-2.0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "logps/kernels/cpu/softmax.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
//
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/cpu/simd_math-inl.h"
#include "kernels/cpu/widen-inl.h"
#include "logps/kernels/cpu/softmax.h"

HWY_BEFORE_NAMESPACE();
namespace prefopt::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class Element>
using Accumulate = std::conditional_t<std::is_same_v<Element, double>, double, float>;

template <class D>
std::int64_t lanes_of(D d) {
  return static_cast<std::int64_t>(hn::Lanes(d));
}

// Stands for the maximum of nothing: unlike minus infinity it can be subtracted from minus
// infinity.
template <class T>
constexpr T kNoMax = std::numeric_limits<T>::lowest();

// The map with its constants in vectors.
template <class D>
struct VectorMap {
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;

  VectorMap(D tag, const LogitMap& map)
      : d(tag),
        capped(map.softcap != 0),
        inner(hn::Set(
            d, static_cast<T>(capped ? map.scale / map.softcap : map.scale / map.temperature))),
        outer(hn::Set(d, static_cast<T>(map.softcap / map.temperature))),
        unit(hn::Set(d, static_cast<T>(capped ? map.temperature / map.softcap : 0))) {}

  V logit(V u) const {
    const V scaled = hn::Mul(u, inner);
    return capped ? hn::Mul(outer, tanh_of(d, scaled)) : scaled;
  }
  // dz/du but for the constant factor scale / temperature.
  V relative_slope(V z) const {
    const V t = hn::Mul(z, unit);
    return hn::NegMulAdd(t, t, hn::Set(d, T(1)));
  }

  D d;
  bool capped;
  V inner, outer, unit;
};

// p log p, which is 0 where p is.
template <class D, class V = hn::Vec<D>>
V p_log_p(D d, V p, V log_p) {
  return hn::Mul(p, hn::Max(log_p, hn::Set(d, kNoMax<hn::TFromD<D>>)));
}

// --- rows -------------------------------------------------------------------------------------

// Logits that stay in the first-level cache where a second pass is needed, and few enough that sums
// of float32 over them lose nothing; from there on they are float64.
#if HWY_TARGET == HWY_SCALAR
constexpr std::int64_t kChunk = 256;
#else
constexpr std::int64_t kChunk = 2048;
#endif

template <class T>
void narrow(const T* source, std::int64_t size, T* out) {
  if (source != out) std::copy(source, source + size, out);
}

// Highway's scalar conversion to float16 cuts off; c10's rounds, as the vector instructions do.
void narrow(const float* source, std::int64_t size, c10::Half* out) {
  std::int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::ScalableTag<float> d;
  const hn::Rebind<hwy::float16_t, decltype(d)> halves;
  auto* to = reinterpret_cast<hwy::float16_t*>(out);
  for (; i + lanes_of(d) <= size; i += lanes_of(d)) {
    hn::StoreU(hn::DemoteTo(halves, hn::LoadU(d, source + i)), halves, to + i);
  }
#endif
  for (; i < size; ++i) out[i] = c10::Half(source[i]);
}

// A plain loop of integer operations, which the compiler makes vectors of for each target.
void narrow(const float* source, std::int64_t size, c10::BFloat16* out) {
  for (std::int64_t i = 0; i < size; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, source + i, sizeof bits);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    out[i].x = static_cast<std::uint16_t>(is_nan ? 0x7fc0u : rounded);
  }
}

// Mapped logits of a chunk: where they lie if nothing has to be done to them, else in the buffer.
template <class Element, class T = Accumulate<Element>>
const T* logits_of(const Element* source, std::int64_t size, const LogitMap& map, T* buffer) {
  if constexpr (std::is_same_v<Element, T>) {
    if (map.is_identity()) return source;
  }
  widen(source, size, buffer);
  if (map.is_identity()) return buffer;
  const hn::ScalableTag<T> d;
  const VectorMap vector_map(d, map);
  // The buffer is longer than a chunk by a vector, so that the last one may hold anything.
  for (std::int64_t i = 0; i < size; i += lanes_of(d)) {
    hn::Store(vector_map.logit(hn::Load(d, buffer + i)), d, buffer + i);
  }
  return buffer;
}

template <class D, class V = hn::Vec<D>>
double sum_in_double(D d, V v) {
  using T = hn::TFromD<D>;
  HWY_ALIGN T parts[HWY_MAX_BYTES / sizeof(T)];
  hn::Store(v, d, parts);
  double sum = 0;
  for (std::int64_t i = 0; i < lanes_of(d); ++i) sum += static_cast<double>(parts[i]);
  return sum;
}

template <class T>
T chunk_max(const T* z, std::int64_t size) {
  const hn::ScalableTag<T> d;
  auto vector_max = hn::Set(d, kNoMax<T>);
  std::int64_t i = 0;
  for (; i + lanes_of(d) <= size; i += lanes_of(d)) {
    vector_max = hn::Max(vector_max, hn::LoadU(d, z + i));
  }
  T max = hn::GetLane(hn::MaxOfLanes(d, vector_max));
  for (; i < size; ++i) max = std::max(max, z[i]);
  return max;
}

// The largest terms of a sum are e^(z - guess), and the difference is rounded: a guess further off
// would cost digits.
constexpr double kMaxOverGuess = 2;

template <class T>
struct ChunkSum {
  double sum;  ///< of e^(z - guess)
  T max;       ///< of the logits and the guess
};

// One pass over a chunk, which takes the maximum along: a tenth faster in the cache than a pass for
// each. It asks for the next chunk meanwhile.
template <class T>
ChunkSum<T> chunk_sum(const T* z, std::int64_t size, T guess, const char* next) {
  const hn::ScalableTag<T> d;
  const std::int64_t lanes = lanes_of(d);
  const auto shift = hn::Set(d, guess);
  constexpr int kN = 4;
  hn::Vec<decltype(d)> sums[kN], maxima[kN];
  for (int j = 0; j < kN; ++j) {
    sums[j] = hn::Zero(d);
    maxima[j] = shift;
  }
  std::int64_t i = 0;
  for (; i + kN * lanes <= size; i += kN * lanes) {
    const auto* ahead = next + i * static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t byte = 0; byte < kN * lanes * static_cast<std::int64_t>(sizeof(T));
         byte += 64) {
      hwy::Prefetch(ahead + byte);
    }
    for (int j = 0; j < kN; ++j) {
      const auto value = hn::LoadU(d, z + i + j * lanes);
      maxima[j] = hn::Max(maxima[j], value);
      sums[j] = hn::Add(sums[j], exp_of(d, hn::Sub(value, shift)));
    }
  }
  double sum = sum_in_double(d, hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3])));
  auto max = hn::Max(hn::Max(maxima[0], maxima[1]), hn::Max(maxima[2], maxima[3]));
  for (; i < size; i += lanes) {
    HWY_ALIGN T tail[HWY_MAX_BYTES / sizeof(T)];
    std::fill(tail, tail + lanes, -std::numeric_limits<T>::infinity());
    std::copy(z + i, z + std::min(size, i + lanes), tail);
    const auto value = hn::Load(d, tail);
    max = hn::Max(max, value);
    sum += sum_in_double(d, exp_of(d, hn::Sub(value, shift)));
  }
  return {sum, hn::GetLane(hn::MaxOfLanes(d, max))};
}

// Sums that only by-products need; computing exp again keeps the common pass short.
template <class T>
void add_chunk_moments(const T* z, std::int64_t size, T max, RowMoments& moments) {
  const hn::ScalableTag<T> d;
  const std::int64_t lanes = lanes_of(d);
  const auto shift = hn::Set(d, max);
  for (std::int64_t i = 0; i < size; i += lanes) {
    HWY_ALIGN T tail[HWY_MAX_BYTES / sizeof(T)];
    const T* at = z + i;
    if (i + lanes > size) {
      std::fill(tail, tail + lanes, -std::numeric_limits<T>::infinity());
      std::copy(z + i, z + size, tail);
      at = tail;
    }
    const auto shifted = hn::Sub(hn::LoadU(d, at), shift);
    const auto e = exp_of(d, shifted);
    moments.shifted += sum_in_double(d, hn::Mul(e, hn::Max(shifted, hn::Set(d, kNoMax<T>))));
    moments.sum_e_squared += sum_in_double(d, hn::Mul(e, e));
  }
  for (std::int64_t i = 0; i < size; ++i) moments.sum_z += static_cast<double>(z[i]);
}

template <class Element>
RowMoments moments_of_row(const Element* row, std::int64_t size, std::int64_t target,
                          const LogitMap& map, bool all) {
  using T = Accumulate<Element>;
  HWY_ALIGN T buffer[kChunk + HWY_MAX_BYTES / sizeof(T)];
  RowMoments moments{};
  moments.max = static_cast<double>(kNoMax<T>);
  for (std::int64_t begin = 0; begin < size; begin += kChunk) {
    const std::int64_t count = std::min(kChunk, size - begin);
    const T* z = logits_of(row + begin, count, map, buffer);
    const auto* next = reinterpret_cast<const char*>(row + begin + count);
    T guess = begin == 0 ? chunk_max(z, count) : static_cast<T>(moments.max);
    ChunkSum<T> chunk = chunk_sum(z, count, guess, next);
    if (chunk.max - guess > T(kMaxOverGuess)) {
      guess = chunk.max;
      chunk = chunk_sum(z, count, guess, next);
    }
    rescale(moments, static_cast<double>(chunk.max));
    moments.sum += chunk.sum * std::exp(static_cast<double>(guess) - moments.max);
    if (all) add_chunk_moments(z, count, chunk.max, moments);
    if (target >= begin && target < begin + count) {
      moments.target = static_cast<double>(z[target - begin]);
    }
  }
  return moments;
}

template <class Element>
void gradient_of_row(const Element* row, std::int64_t size, std::int64_t target,
                     const LogitMap& map, double logsumexp, const RowFactors& factors,
                     Element* gradient) {
  using T = Accumulate<Element>;
  const hn::ScalableTag<T> d;
  const std::int64_t lanes = lanes_of(d);
  const VectorMap vector_map(d, map);
  const T high = static_cast<T>(logsumexp);
  const auto shift_high = hn::Set(d, high);
  const auto shift_low = hn::Set(d, static_cast<T>(logsumexp - static_cast<double>(high)));
  const auto steepest = [&](double factor) { return factor * map.scale / map.temperature; };
  const auto of_p = hn::Set(d, static_cast<T>(-steepest(factors.of_p)));
  const auto of_p_log_p = hn::Set(d, static_cast<T>(-steepest(factors.of_p_log_p)));
  const bool has_log = factors.of_p_log_p != 0;
  const auto value = [&](auto z) HWY_ATTR {
    const auto log_p = hn::Sub(hn::Sub(z, shift_high), shift_low);
    const auto p = exp_of(d, log_p);
    auto scaled = hn::Mul(of_p, p);
    if (has_log) scaled = hn::MulAdd(of_p_log_p, p_log_p(d, p, log_p), scaled);
    return vector_map.capped ? hn::Mul(scaled, vector_map.relative_slope(z)) : scaled;
  };
  HWY_ALIGN T buffer[kChunk + HWY_MAX_BYTES / sizeof(T)];
  HWY_ALIGN T out_buffer[kChunk + HWY_MAX_BYTES / sizeof(T)];
  for (std::int64_t begin = 0; begin < size; begin += kChunk) {
    const std::int64_t count = std::min(kChunk, size - begin);
    const T* z = logits_of(row + begin, count, map, buffer);
    T* out = out_buffer;
    if constexpr (std::is_same_v<Element, T>) out = gradient + begin;
    const bool has_target = target >= begin && target < begin + count;
    const T z_target = has_target ? z[target - begin] : T(0);
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      hn::StoreU(value(hn::LoadU(d, z + i)), d, out + i);
    }
    if (i < count) {
      HWY_ALIGN T tail[HWY_MAX_BYTES / sizeof(T)] = {};
      std::copy(z + i, z + count, tail);
      hn::Store(value(hn::Load(d, tail)), d, tail);
      std::copy(tail, tail + (count - i), out + i);
    }
    if (has_target) {
      out[target - begin] +=
          static_cast<T>(factors.of_target * slope(map, static_cast<double>(z_target)));
    }
    narrow(out, count, gradient + begin);
  }
}

// --- blocks -----------------------------------------------------------------------------------

template <class T>
void map_all(LogitBlock<T> block, const T* bias, const LogitMap& map) {
  const hn::ScalableTag<T> d;
  const VectorMap vector_map(d, map);
  for (std::int64_t row = 0; row < block.rows; ++row) {
    T* z = block.data + row * block.stride;
    const auto offset = hn::Set(d, bias == nullptr ? T(0) : bias[row]);
    for (std::int64_t i = 0; i < block.columns; i += lanes_of(d)) {
      hn::StoreU(vector_map.logit(hn::Add(hn::LoadU(d, z + i), offset)), d, z + i);
    }
  }
}

// Vectors of columns at once: a few, so that the rows' cache lines are used whole.
constexpr int kColumnVectors = 4;

template <class T, int kN, bool kAll>
HWY_INLINE void moments_of_columns(LogitBlock<T> block, std::int64_t column,
                                   BlockMoments<T> moments) {
  const hn::ScalableTag<T> d;
  const std::int64_t lanes = lanes_of(d);
  using V = hn::Vec<decltype(d)>;
  V max[kN];
  for (int j = 0; j < kN; ++j) max[j] = hn::Set(d, kNoMax<T>);
  const T* z = block.data + column;
  for (std::int64_t row = 0; row < block.rows; ++row, z += block.stride) {
    for (int j = 0; j < kN; ++j) max[j] = hn::Max(max[j], hn::LoadU(d, z + j * lanes));
  }
  V sum[kN], shifted[kN], sum_z[kN], sum_e_squared[kN];
  for (int j = 0; j < kN; ++j) {
    sum[j] = shifted[j] = sum_z[j] = sum_e_squared[j] = hn::Zero(d);
  }
  z = block.data + column;
  for (std::int64_t row = 0; row < block.rows; ++row, z += block.stride) {
    for (int j = 0; j < kN; ++j) {
      const V value = hn::LoadU(d, z + j * lanes);
      const V below = hn::Sub(value, max[j]);
      const V e = exp_of(d, below);
      sum[j] = hn::Add(sum[j], e);
      if constexpr (kAll) {
        shifted[j] = hn::MulAdd(e, hn::Max(below, hn::Set(d, kNoMax<T>)), shifted[j]);
        sum_z[j] = hn::Add(sum_z[j], value);
        sum_e_squared[j] = hn::MulAdd(e, e, sum_e_squared[j]);
      }
    }
  }
  for (int j = 0; j < kN; ++j) {
    const std::int64_t at = column + j * lanes;
    hn::StoreU(max[j], d, moments.max + at);
    hn::StoreU(sum[j], d, moments.sum + at);
    if constexpr (kAll) {
      hn::StoreU(shifted[j], d, moments.shifted + at);
      hn::StoreU(sum_z[j], d, moments.sum_z + at);
      hn::StoreU(sum_e_squared[j], d, moments.sum_e_squared + at);
    }
  }
}

template <class T, bool kAll>
void moments_of_block(LogitBlock<T> block, BlockMoments<T> moments) {
  const std::int64_t lanes = lanes_of(hn::ScalableTag<T>());
  std::int64_t column = 0;
  for (; column + kColumnVectors * lanes <= block.columns; column += kColumnVectors * lanes) {
    moments_of_columns<T, kColumnVectors, kAll>(block, column, moments);
  }
  for (; column < block.columns; column += lanes) {
    moments_of_columns<T, 1, kAll>(block, column, moments);
  }
}

template <class T>
void moments_of_block(LogitBlock<T> block, BlockMoments<T> moments) {
  if (moments.shifted == nullptr) {
    moments_of_block<T, false>(block, moments);
  } else {
    moments_of_block<T, true>(block, moments);
  }
}

template <class T>
void gradient_of_block(LogitBlock<T> logits, const ColumnFactors<T>& factors, const LogitMap& map,
                       LogitBlock<T> gradient) {
  const hn::ScalableTag<T> d;
  const VectorMap vector_map(d, map);
  const auto constant = hn::Set(d, static_cast<T>(-map.scale / map.temperature));
  for (std::int64_t row = 0; row < logits.rows; ++row) {
    const T* z = logits.data + row * logits.stride;
    T* out = gradient.data + row * gradient.stride;
    for (std::int64_t i = 0; i < logits.columns; i += lanes_of(d)) {
      const auto value = hn::LoadU(d, z + i);
      const auto log_p = hn::Sub(hn::Sub(value, hn::LoadU(d, factors.logsumexp_high + i)),
                                 hn::LoadU(d, factors.logsumexp_low + i));
      const auto p = exp_of(d, log_p);
      const auto sloped = [&](const T* factor) HWY_ATTR {
        const auto steepest = hn::Mul(constant, hn::LoadU(d, factor + i));
        return vector_map.capped ? hn::Mul(steepest, vector_map.relative_slope(value)) : steepest;
      };
      auto result = hn::Mul(sloped(factors.of_p), p);
      if (factors.of_p_log_p != nullptr) {
        result = hn::MulAdd(sloped(factors.of_p_log_p), p_log_p(d, p, log_p), result);
      }
      hn::StoreU(result, d, out + i);
    }
  }
}

template <class T>
void weights_of_block(LogitBlock<T> block, const T* max, const LogitMap& map) {
  const hn::ScalableTag<T> d;
  const VectorMap vector_map(d, map);
  const auto constant = hn::Set(d, static_cast<T>(map.scale / map.temperature));
  for (std::int64_t row = 0; row < block.rows; ++row) {
    T* z = block.data + row * block.stride;
    for (std::int64_t i = 0; i < block.columns; i += lanes_of(d)) {
      const auto value = hn::LoadU(d, z + i);
      const auto factor =
          vector_map.capped ? hn::Mul(constant, vector_map.relative_slope(value)) : constant;
      hn::StoreU(hn::Mul(factor, exp_of(d, hn::Sub(value, hn::LoadU(d, max + i)))), d, z + i);
    }
  }
}

// A name for each type: what is exported to the dispatcher cannot be a template.
#define PREFOPT_ROW_KERNELS(Element, suffix)                                                   \
  RowMoments row_moments_##suffix(const Element* row, std::int64_t size, std::int64_t target,  \
                                  const LogitMap& map, bool all) {                             \
    return moments_of_row(row, size, target, map, all);                                        \
  }                                                                                            \
  void row_gradient_##suffix(const Element* row, std::int64_t size, std::int64_t target,       \
                             const LogitMap& map, double logsumexp, const RowFactors& factors, \
                             Element* gradient) {                                              \
    gradient_of_row(row, size, target, map, logsumexp, factors, gradient);                     \
  }
#define PREFOPT_BLOCK_KERNELS(T, suffix)                                                \
  void map_block_##suffix(LogitBlock<T> block, const T* bias, const LogitMap& map) {    \
    map_all(block, bias, map);                                                          \
  }                                                                                     \
  void block_moments_##suffix(LogitBlock<T> block, BlockMoments<T> moments) {           \
    moments_of_block(block, moments);                                                   \
  }                                                                                     \
  void block_gradient_##suffix(LogitBlock<T> block, const ColumnFactors<T>& factors,    \
                               const LogitMap& map, LogitBlock<T> gradient) {           \
    gradient_of_block(block, factors, map, gradient);                                   \
  }                                                                                     \
  void block_weights_##suffix(LogitBlock<T> block, const T* max, const LogitMap& map) { \
    weights_of_block(block, max, map);                                                  \
  }

PREFOPT_ROW_KERNELS(float, float)
PREFOPT_ROW_KERNELS(double, double)
PREFOPT_ROW_KERNELS(c10::BFloat16, bfloat16)
PREFOPT_ROW_KERNELS(c10::Half, half)
PREFOPT_BLOCK_KERNELS(float, float)
PREFOPT_BLOCK_KERNELS(double, double)

#undef PREFOPT_ROW_KERNELS
#undef PREFOPT_BLOCK_KERNELS

}  // namespace HWY_NAMESPACE
}  // namespace prefopt::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <ATen/ops/empty.h>

#include "logps/kernels/statistics.h"

namespace prefopt::kernels::cpu {

double slope(const LogitMap& map, double z) {
  const double t = map.softcap == 0 ? 0 : z * map.temperature / map.softcap;
  return map.scale / map.temperature * (1 - t * t);
}

double logsumexp_of(const RowMoments& moments) { return moments.max + std::log(moments.sum); }

double rescale(RowMoments& moments, double max) {
  if (max == moments.max) return 1;
  const double shift = moments.max - max;
  const double factor = std::exp(shift);
  // Before the first logit the shift is immense, and its product with nothing is nothing.
  moments.shifted = factor > 0 ? factor * (moments.shifted + shift * moments.sum) : 0;
  moments.sum *= factor;
  moments.sum_e_squared *= factor * factor;
  moments.max = max;
  return factor;
}

at::Tensor statistics_of(const std::vector<RowMoments>& rows, std::int64_t vocab_size, bool all) {
  const auto count = static_cast<std::int64_t>(rows.size());
  at::Tensor result = at::empty({all ? kAllStatistics : kFewStatistics, count}, at::kDouble);
  double* out = result.data_ptr<double>();
  for (std::int64_t i = 0; i < count; ++i, ++out) {
    const RowMoments& row = rows[static_cast<std::size_t>(i)];
    const double log_sum = std::log(row.sum);
    out[kLogp * count] = (row.target - row.max) - log_sum;
    out[kLogsumexp * count] = row.max + log_sum;
    out[kIsTop1 * count] = row.target >= row.max ? 1 : 0;
    if (!all) continue;
    out[kEntropy * count] = log_sum - row.shifted / row.sum;
    out[kMeanLogit * count] = row.sum_z / static_cast<double>(vocab_size);
    out[kLogSumPSquared * count] = std::log(row.sum_e_squared) - 2 * log_sum;
  }
  return result;
}

#define PREFOPT_ROW_KERNELS(Element, suffix)                                          \
  HWY_EXPORT(row_moments_##suffix);                                                   \
  HWY_EXPORT(row_gradient_##suffix);                                                  \
  template <>                                                                         \
  RowMoments row_moments(const Element* row, std::int64_t size, std::int64_t target,  \
                         const LogitMap& map, bool all) {                             \
    return HWY_DYNAMIC_DISPATCH(row_moments_##suffix)(row, size, target, map, all);   \
  }                                                                                   \
  template <>                                                                         \
  void row_gradient(const Element* row, std::int64_t size, std::int64_t target,       \
                    const LogitMap& map, double logsumexp, const RowFactors& factors, \
                    Element* gradient) {                                              \
    HWY_DYNAMIC_DISPATCH(row_gradient_##suffix)                                       \
    (row, size, target, map, logsumexp, factors, gradient);                           \
  }
#define PREFOPT_BLOCK_KERNELS(T, suffix)                                                         \
  HWY_EXPORT(map_block_##suffix);                                                                \
  HWY_EXPORT(block_moments_##suffix);                                                            \
  HWY_EXPORT(block_gradient_##suffix);                                                           \
  HWY_EXPORT(block_weights_##suffix);                                                            \
  template <>                                                                                    \
  void map_block(LogitBlock<T> block, const T* bias, const LogitMap& map) {                      \
    HWY_DYNAMIC_DISPATCH(map_block_##suffix)(block, bias, map);                                  \
  }                                                                                              \
  template <>                                                                                    \
  void block_moments(LogitBlock<T> block, BlockMoments<T> moments) {                             \
    HWY_DYNAMIC_DISPATCH(block_moments_##suffix)(block, moments);                                \
  }                                                                                              \
  template <>                                                                                    \
  void block_gradient(LogitBlock<T> block, const ColumnFactors<T>& factors, const LogitMap& map, \
                      LogitBlock<T> gradient) {                                                  \
    HWY_DYNAMIC_DISPATCH(block_gradient_##suffix)(block, factors, map, gradient);                \
  }                                                                                              \
  template <>                                                                                    \
  void block_weights(LogitBlock<T> block, const T* max, const LogitMap& map) {                   \
    HWY_DYNAMIC_DISPATCH(block_weights_##suffix)(block, max, map);                               \
  }

PREFOPT_ROW_KERNELS(float, float)
PREFOPT_ROW_KERNELS(double, double)
PREFOPT_ROW_KERNELS(c10::BFloat16, bfloat16)
PREFOPT_ROW_KERNELS(c10::Half, half)
PREFOPT_BLOCK_KERNELS(float, float)
PREFOPT_BLOCK_KERNELS(double, double)

#undef PREFOPT_ROW_KERNELS
#undef PREFOPT_BLOCK_KERNELS

}  // namespace prefopt::kernels::cpu
#endif
