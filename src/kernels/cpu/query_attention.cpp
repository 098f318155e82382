// SPDX-License-Identifier: Apache-2.0
// With one query there is nothing to multiply tiles of: it is keys and values read once. A SIMD
// lane is a number of a head.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/query_attention.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
//
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/query_attention.h"
#include "kernels/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace prefopt::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Calls body(tag, i) for each vector at i, then for what is left, number by number.
template <class T, class Body>
HWY_INLINE void for_vectors(std::int64_t size, Body&& body) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t i = 0;
  for (; i + lanes <= size; i += lanes) body(d, i);
  for (; i < size; ++i) body(hn::CappedTag<T, 1>(), i);
}

template <class T>
HWY_INLINE T dot(const T* HWY_RESTRICT a, const T* HWY_RESTRICT b, std::int64_t size) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto sums = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    sums = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sums);
  }
  T sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

// Scores s become c tanh(s / c).
template <class T>
void cap(T* HWY_RESTRICT scores, std::int64_t size, T softcap) {
  for_vectors<T>(size, [&](auto d, std::int64_t i) HWY_ATTR {
    const auto scaled = hn::Mul(hn::LoadU(d, scores + i), hn::Set(d, 1 / softcap));
    hn::StoreU(hn::Mul(hn::Set(d, softcap), tanh_of(d, scaled)), d, scores + i);
  });
}

// From scores to e^(s − max); returns their sum.
template <class T>
HWY_INLINE double exponentials(T* HWY_RESTRICT scores, std::int64_t size) {
  const T max = *std::max_element(scores, scores + size);
  for_vectors<T>(size, [&](auto d, std::int64_t i) HWY_ATTR {
    hn::StoreU(exp_of(d, hn::Sub(hn::LoadU(d, scores + i), hn::Set(d, max))), d, scores + i);
  });
  double sum = 0;
  for (std::int64_t i = 0; i < size; ++i) sum += static_cast<double>(scores[i]);
  return sum;
}

// `out` += Σ_j weights[j] values[j, :], kN vectors of it from `first` on.
template <int kN, class T, class D>
HWY_INLINE void add_values(D d, const T* HWY_RESTRICT weights, const KeyRows<T>& rows,
                           std::int64_t head_dim, std::int64_t first, T* HWY_RESTRICT out) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  hn::Vec<D> sums[kN];
  HWY_UNROLL(4)
  for (int n = 0; n < kN; ++n) sums[n] = hn::LoadU(d, out + first + n * lanes);
  const T* value = rows.value + first;
  for (std::int64_t j = 0; j < rows.length; ++j, value += head_dim) {
    const auto weight = hn::Set(d, weights[j]);
    HWY_UNROLL(4)
    for (int n = 0; n < kN; ++n) {
      sums[n] = hn::MulAdd(weight, hn::LoadU(d, value + n * lanes), sums[n]);
    }
  }
  HWY_UNROLL(4)
  for (int n = 0; n < kN; ++n) hn::StoreU(sums[n], d, out + first + n * lanes);
}

template <class T>
HWY_INLINE void add_all_values(const T* weights, const KeyRows<T>& rows, std::int64_t head_dim,
                               T* out) {
  if (rows.length == 0) return;
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t i = 0;
  for (; i + 4 * lanes <= head_dim; i += 4 * lanes) {
    add_values<4>(d, weights, rows, head_dim, i, out);
  }
  for (; i + lanes <= head_dim; i += lanes) add_values<1>(d, weights, rows, head_dim, i, out);
  for (; i < head_dim; ++i) {
    add_values<1>(hn::CappedTag<T, 1>(), weights, rows, head_dim, i, out);
  }
}

// `scores` has room for groups * (keys of both parts).
template <class T>
void attend(const QueryTask<T>& task, const QueryShape& shape, T* HWY_RESTRICT scores) {
  const std::int64_t dim = shape.head_dim;
  const std::int64_t keys = task.prompt.length + task.own.length;
  const auto scale = static_cast<T>(shape.scale);
  std::int64_t before = 0;
  for (const KeyRows<T>& part : {task.prompt, task.own}) {
    for (std::int64_t j = 0; j < part.length; ++j) {
      for (std::int64_t g = 0; g < shape.groups; ++g) {
        scores[g * keys + before + j] = scale * dot(task.query + g * dim, part.key + j * dim, dim);
      }
    }
    before += part.length;
  }
  if (shape.softcap > 0) cap(scores, shape.groups * keys, static_cast<T>(shape.softcap));
  for (std::int64_t g = 0; g < shape.groups; ++g) {
    T* weights = scores + g * keys;
    T* out = task.output + g * dim;
    const auto factor = static_cast<T>(1 / exponentials(weights, keys));
    std::fill_n(out, dim, T(0));
    add_all_values(weights, task.prompt, dim, out);
    add_all_values(weights + task.prompt.length, task.own, dim, out);
    for_vectors<T>(dim, [&](auto d, std::int64_t i) HWY_ATTR {
      hn::StoreU(hn::Mul(hn::LoadU(d, out + i), hn::Set(d, factor)), d, out + i);
    });
  }
}

// A name for each type: what is exported to the dispatcher cannot be a template.
void attend_float(const QueryTask<float>& task, const QueryShape& shape, float* scores) {
  attend(task, shape, scores);
}
void attend_double(const QueryTask<double>& task, const QueryShape& shape, double* scores) {
  attend(task, shape, scores);
}

}  // namespace HWY_NAMESPACE
}  // namespace prefopt::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include "core/parallel.h"
#include "kernels/cpu/gemm.h"

namespace prefopt::kernels::cpu {
namespace {

HWY_EXPORT(attend_float);
HWY_EXPORT(attend_double);

void attend_one(const QueryTask<float>& task, const QueryShape& shape, float* scores) {
  HWY_DYNAMIC_DISPATCH(attend_float)(task, shape, scores);
}
void attend_one(const QueryTask<double>& task, const QueryShape& shape, double* scores) {
  HWY_DYNAMIC_DISPATCH(attend_double)(task, shape, scores);
}

}  // namespace

template <class T>
void query_attention(std::span<const QueryTask<T>> tasks, const QueryShape& shape) {
  std::int64_t most_keys = 0;
  for (const QueryTask<T>& task : tasks) {
    most_keys = std::max(most_keys, task.prompt.length + task.own.length);
  }
  parallel_for(0, std::ssize(tasks), 1, [&](std::int64_t first, std::int64_t last) {
    const Buffer<T> scores(shape.groups * most_keys);
    for (std::int64_t i = first; i < last; ++i) {
      attend_one(tasks[static_cast<std::size_t>(i)], shape, scores.data());
    }
  });
}

template void query_attention(std::span<const QueryTask<float>>, const QueryShape&);
template void query_attention(std::span<const QueryTask<double>>, const QueryShape&);

}  // namespace prefopt::kernels::cpu
#endif
