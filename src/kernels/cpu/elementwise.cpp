// SPDX-License-Identifier: Apache-2.0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
//
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/elementwise.h"
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

// Σ term(tag, i). A lane adds up few numbers before they go to float64, so that float32 loses
// nothing to the length of a row.
template <class T, class Term>
HWY_INLINE double sum_of(std::int64_t size, Term&& term) {
  constexpr std::int64_t kAtOnce = 4, kDepth = 8;
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t step = kAtOnce * lanes;
  double sum = 0;
  std::int64_t i = 0;
  while (i + step <= size) {
    auto a = hn::Zero(d), b = a, c = a, e = a;
    const std::int64_t end = std::min(size - step, i + (kDepth - 1) * step);
    for (; i <= end; i += step) {
      a = hn::Add(a, term(d, i));
      b = hn::Add(b, term(d, i + lanes));
      c = hn::Add(c, term(d, i + 2 * lanes));
      e = hn::Add(e, term(d, i + 3 * lanes));
    }
    sum +=
        static_cast<double>(hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a, b), hn::Add(c, e)))));
  }
  for (; i + lanes <= size; i += lanes) {
    sum += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, term(d, i))));
  }
  for (; i < size; ++i) {
    sum += static_cast<double>(hn::GetLane(term(hn::CappedTag<T, 1>(), i)));
  }
  return sum;
}

template <class T>
void norm_rows(const RmsNorm<T>& norm, std::int64_t first, std::int64_t last) {
  const auto [rows, groups, width] = norm.shape;
  for (std::int64_t row = first; row < last; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t offset = group * width;
      const T* x = norm.x[row] + offset;
      if (norm.residual.data != nullptr) {
        const T* residual = norm.residual[row] + offset;
        T* sum = norm.sum[row] + offset;
        for_vectors<T>(width, [&](auto d, std::int64_t i) HWY_ATTR {
          hn::StoreU(hn::Add(hn::LoadU(d, x + i), hn::LoadU(d, residual + i)), d, sum + i);
        });
        x = sum;
      }
      const double squares = sum_of<T>(width, [&](auto d, std::int64_t i) HWY_ATTR {
        const auto value = hn::LoadU(d, x + i);
        return hn::Mul(value, value);
      });
      const T rstd = static_cast<T>(1 / std::sqrt(squares / static_cast<double>(width) + norm.eps));
      if (norm.rstd != nullptr) norm.rstd[row * groups + group] = rstd;
      T* y = norm.y[row] + offset;
      for_vectors<T>(width, [&](auto d, std::int64_t i) HWY_ATTR {
        const auto normed = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, rstd));
        hn::StoreU(hn::Mul(hn::LoadU(d, norm.weight + i), normed), d, y + i);
      });
    }
  }
}

// The share of rows [first, last) in dw is added to `dw`.
template <class T, bool kAccumulate, bool kWeight>
HWY_INLINE void norm_part_backward(const T* dy, const T* x, const T* weight, T rstd,
                                   std::int64_t width, T* dx, T* dw) {
  const double products = sum_of<T>(width, [&](auto d, std::int64_t i) HWY_ATTR {
    return hn::Mul(hn::Mul(hn::LoadU(d, dy + i), hn::LoadU(d, weight + i)), hn::LoadU(d, x + i));
  });
  const auto wide_rstd = static_cast<double>(rstd);
  const T along_x = static_cast<T>(wide_rstd * wide_rstd * products / static_cast<double>(width));
  for_vectors<T>(width, [&](auto d, std::int64_t i) HWY_ATTR {
    const auto of_y = hn::LoadU(d, dy + i);
    const auto value = hn::LoadU(d, x + i);
    const auto scale = hn::Set(d, rstd);
    const auto g = hn::Mul(of_y, hn::LoadU(d, weight + i));
    auto result = hn::Mul(scale, hn::NegMulAdd(value, hn::Set(d, along_x), g));
    if constexpr (kAccumulate) result = hn::Add(result, hn::LoadU(d, dx + i));
    hn::StoreU(result, d, dx + i);
    if constexpr (kWeight) {
      hn::StoreU(hn::MulAdd(of_y, hn::Mul(value, scale), hn::LoadU(d, dw + i)), d, dw + i);
    }
  });
}

template <class T, bool kAccumulate, bool kWeight>
void norm_rows_backward(const RmsNormBackward<T>& norm, std::int64_t first, std::int64_t last,
                        T* dw) {
  const auto [rows, groups, width] = norm.shape;
  for (std::int64_t row = first; row < last; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t offset = group * width;
      norm_part_backward<T, kAccumulate, kWeight>(norm.dy[row] + offset, norm.x[row] + offset,
                                                  norm.weight, norm.rstd[row * groups + group],
                                                  width, norm.dx[row] + offset, dw);
    }
  }
}

template <class T>
void norm_rows_backward(const RmsNormBackward<T>& norm, std::int64_t first, std::int64_t last,
                        T* dw) {
  if (norm.accumulate) {
    dw != nullptr ? norm_rows_backward<T, true, true>(norm, first, last, dw)
                  : norm_rows_backward<T, true, false>(norm, first, last, dw);
  } else {
    dw != nullptr ? norm_rows_backward<T, false, true>(norm, first, last, dw)
                  : norm_rows_backward<T, false, false>(norm, first, last, dw);
  }
}

template <class V>
struct Sigmoid {
  V value, complement;  // σ(x), 1 − σ(x)
};

// By e^−|x|, which cannot overflow, and without the difference 1 − σ.
template <class D, class V = hn::Vec<D>>
HWY_INLINE Sigmoid<V> sigmoid_of(D d, V x) {
  const auto one = hn::Set(d, hn::TFromD<D>(1));
  const V e = exp_of(d, hn::Neg(hn::Abs(x)));
  const V large = hn::Div(one, hn::Add(one, e));
  const V small = hn::Mul(e, large);
  const auto negative = hn::Lt(x, hn::Zero(d));
  return {hn::IfThenElse(negative, small, large), hn::IfThenElse(negative, large, small)};
}

// 2 sqrt(2 / π) (x + 0.044715 x³) and its derivative.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V gelu_argument(D d, V x) {
  using T = hn::TFromD<D>;
  const auto rest = hn::Mul(hn::Mul(x, x), hn::Set(d, T(0.044715 * 1.5957691216057308)));
  return hn::Mul(x, hn::Add(rest, hn::Set(d, T(1.5957691216057308))));
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V gelu_argument_slope(D d, V x) {
  using T = hn::TFromD<D>;
  const auto factor = hn::Set(d, T(3 * 0.044715 * 1.5957691216057308));
  return hn::MulAdd(hn::Mul(x, x), factor, hn::Set(d, T(1.5957691216057308)));
}

template <class T, Gate kGate>
void swiglu_rows(const Swiglu<T>& work, std::int64_t first, std::int64_t last) {
  for (std::int64_t row = first; row < last; ++row) {
    const T* g = work.g[row];
    const T* u = work.u[row];
    T* h = work.h[row];
    for_vectors<T>(work.width, [&](auto d, std::int64_t i) HWY_ATTR {
      const auto gate = hn::LoadU(d, g + i);
      auto argument = gate;
      if constexpr (kGate == Gate::kGeluTanh) argument = gelu_argument(d, gate);
      const auto value = hn::Mul(gate, sigmoid_of(d, argument).value);
      hn::StoreU(hn::Mul(value, hn::LoadU(d, u + i)), d, h + i);
    });
  }
}

template <class T>
void swiglu_rows(const Swiglu<T>& work, std::int64_t first, std::int64_t last) {
  if (work.gate == Gate::kSilu) {
    swiglu_rows<T, Gate::kSilu>(work, first, last);
  } else {
    swiglu_rows<T, Gate::kGeluTanh>(work, first, last);
  }
}

template <class T, Gate kGate, bool kHidden>
void swiglu_rows_backward(const SwigluBackward<T>& work, std::int64_t first, std::int64_t last) {
  for (std::int64_t row = first; row < last; ++row) {
    const T* dh = work.dh[row];
    const T* g = work.g[row];
    const T* u = work.u[row];
    T* dg = work.dg[row];
    T* du = work.du[row];
    T* h = kHidden ? work.h[row] : nullptr;
    for_vectors<T>(work.width, [&](auto d, std::int64_t i) HWY_ATTR {
      const auto of_h = hn::LoadU(d, dh + i);
      const auto gate = hn::LoadU(d, g + i);
      const auto up = hn::LoadU(d, u + i);
      auto argument = gate;
      if constexpr (kGate == Gate::kGeluTanh) argument = gelu_argument(d, gate);
      const auto sigmoid = sigmoid_of(d, argument);
      const auto value = hn::Mul(gate, sigmoid.value);
      auto change = value;
      if constexpr (kGate == Gate::kGeluTanh) {
        change = hn::Mul(value, gelu_argument_slope(d, gate));
      }
      const auto slope = hn::MulAdd(change, sigmoid.complement, sigmoid.value);
      hn::StoreU(hn::Mul(hn::Mul(of_h, up), slope), d, dg + i);
      hn::StoreU(hn::Mul(of_h, value), d, du + i);
      if constexpr (kHidden) hn::StoreU(hn::Mul(value, up), d, h + i);
    });
  }
}

template <class T, Gate kGate>
void swiglu_rows_backward(const SwigluBackward<T>& work, std::int64_t first, std::int64_t last) {
  if (work.h.data != nullptr) {
    swiglu_rows_backward<T, kGate, true>(work, first, last);
  } else {
    swiglu_rows_backward<T, kGate, false>(work, first, last);
  }
}

template <class T>
void swiglu_rows_backward(const SwigluBackward<T>& work, std::int64_t first, std::int64_t last) {
  if (work.gate == Gate::kSilu) {
    swiglu_rows_backward<T, Gate::kSilu>(work, first, last);
  } else {
    swiglu_rows_backward<T, Gate::kGeluTanh>(work, first, last);
  }
}

template <class T, bool kBack>
void rope_rows(const Rotary<T>& rotary, std::int64_t first, std::int64_t last) {
  const std::int64_t half = (rotary.rotated > 0 ? rotary.rotated : rotary.head_dim) / 2;
  for (std::int64_t row = first; row < last; ++row) {
    const T* cos = rotary.cos[row];
    const T* sin = rotary.sin[row];
    for (std::int64_t head = 0; head < rotary.heads; ++head) {
      T* low = rotary.x[row] + head * rotary.head_dim;
      T* high = low + half;
      for_vectors<T>(half, [&](auto d, std::int64_t i) HWY_ATTR {
        const auto c = hn::LoadU(d, cos + i);
        auto s = hn::LoadU(d, sin + i);
        if constexpr (kBack) s = hn::Neg(s);
        const auto a = hn::LoadU(d, low + i);
        const auto b = hn::LoadU(d, high + i);
        hn::StoreU(hn::NegMulAdd(s, b, hn::Mul(c, a)), d, low + i);
        hn::StoreU(hn::MulAdd(s, a, hn::Mul(c, b)), d, high + i);
      });
    }
  }
}

// A name for each type: what is exported to the dispatcher cannot be a template.
#define PREFOPT_KERNELS(T, suffix)                                                           \
  void norm_##suffix(const RmsNorm<T>& norm, std::int64_t first, std::int64_t last) {        \
    norm_rows(norm, first, last);                                                            \
  }                                                                                          \
  void norm_backward_##suffix(const RmsNormBackward<T>& norm, std::int64_t first,            \
                              std::int64_t last, T* dw) {                                    \
    norm_rows_backward(norm, first, last, dw);                                               \
  }                                                                                          \
  void swiglu_##suffix(const Swiglu<T>& work, std::int64_t first, std::int64_t last) {       \
    swiglu_rows(work, first, last);                                                          \
  }                                                                                          \
  void swiglu_backward_##suffix(const SwigluBackward<T>& work, std::int64_t first,           \
                                std::int64_t last) {                                         \
    swiglu_rows_backward(work, first, last);                                                 \
  }                                                                                          \
  void apply_rope_##suffix(const Rotary<T>& rotary, std::int64_t first, std::int64_t last) { \
    rope_rows<T, false>(rotary, first, last);                                                \
  }                                                                                          \
  void apply_rope_backward_##suffix(const Rotary<T>& rotary, std::int64_t first,             \
                                    std::int64_t last) {                                     \
    rope_rows<T, true>(rotary, first, last);                                                 \
  }

PREFOPT_KERNELS(float, float)
PREFOPT_KERNELS(double, double)

#undef PREFOPT_KERNELS

}  // namespace HWY_NAMESPACE
}  // namespace prefopt::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include "core/parallel.h"
#include "kernels/cpu/gemm.h"

namespace prefopt::kernels::cpu {
namespace {

// Numbers that are worth a thread.
constexpr std::int64_t kLeastWork = 1 << 14;

// Rows whose share in dw is one sum: their number, unlike that of the threads, is the same
// everywhere.
constexpr std::int64_t kRowsOfSum = 16;

template <class Run>
void for_rows(std::int64_t rows, std::int64_t numbers_of_row, Run&& run) {
  const std::int64_t grain = kLeastWork / std::max<std::int64_t>(numbers_of_row, 1);
  parallel_for(0, rows, std::max<std::int64_t>(grain, 1), run);
}

// dw[i] += Σ_s sums[s, i].
template <class T>
void add_sums(const T* sums, std::int64_t count, std::int64_t width, T* dw) {
  for_rows(width, count, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      double sum = 0;
      for (std::int64_t s = 0; s < count; ++s) sum += static_cast<double>(sums[s * width + i]);
      dw[i] = static_cast<T>(static_cast<double>(dw[i]) + sum);
    }
  });
}

template <class T, class Kernel>
void norm_backward_by_chunks(const RmsNormBackward<T>& norm, Kernel kernel) {
  const std::int64_t rows = norm.shape.rows;
  const std::int64_t width = norm.shape.width;
  const std::int64_t chunks = (rows + kRowsOfSum - 1) / kRowsOfSum;
  const Buffer<T> sums(norm.dw == nullptr ? 0 : chunks * width);
  for_rows(chunks, kRowsOfSum * norm.shape.groups * width,
           [&](std::int64_t first, std::int64_t last) {
             for (std::int64_t chunk = first; chunk < last; ++chunk) {
               T* dw = norm.dw == nullptr ? nullptr : sums.data() + chunk * width;
               if (dw != nullptr) std::fill_n(dw, width, T(0));
               kernel(norm, chunk * kRowsOfSum, std::min(rows, (chunk + 1) * kRowsOfSum), dw);
             }
           });
  if (norm.dw != nullptr) add_sums(sums.data(), chunks, width, norm.dw);
}

}  // namespace

#define PREFOPT_KERNELS(T, suffix)                                                      \
  HWY_EXPORT(norm_##suffix);                                                            \
  HWY_EXPORT(norm_backward_##suffix);                                                   \
  HWY_EXPORT(swiglu_##suffix);                                                          \
  HWY_EXPORT(swiglu_backward_##suffix);                                                 \
  HWY_EXPORT(apply_rope_##suffix);                                                      \
  HWY_EXPORT(apply_rope_backward_##suffix);                                             \
  template <>                                                                           \
  void rms_norm(const RmsNorm<T>& norm) {                                               \
    for_rows(norm.shape.rows, norm.shape.groups* norm.shape.width,                      \
             [&](std::int64_t first, std::int64_t last) {                               \
               HWY_DYNAMIC_DISPATCH(norm_##suffix)(norm, first, last);                  \
             });                                                                        \
  }                                                                                     \
  template <>                                                                           \
  void rms_norm_backward(const RmsNormBackward<T>& norm) {                              \
    norm_backward_by_chunks(norm, HWY_DYNAMIC_DISPATCH(norm_backward_##suffix));        \
  }                                                                                     \
  template <>                                                                           \
  void swiglu(const Swiglu<T>& work) {                                                  \
    for_rows(work.rows, work.width, [&](std::int64_t first, std::int64_t last) {        \
      HWY_DYNAMIC_DISPATCH(swiglu_##suffix)(work, first, last);                         \
    });                                                                                 \
  }                                                                                     \
  template <>                                                                           \
  void swiglu_backward(const SwigluBackward<T>& work) {                                 \
    for_rows(work.rows, work.width, [&](std::int64_t first, std::int64_t last) {        \
      HWY_DYNAMIC_DISPATCH(swiglu_backward_##suffix)(work, first, last);                \
    });                                                                                 \
  }                                                                                     \
  template <>                                                                           \
  void apply_rope_(const Rotary<T>& rotary) {                                           \
    for_rows(rotary.rows, rotary.heads* rotary.head_dim,                                \
             [&](std::int64_t first, std::int64_t last) {                               \
               HWY_DYNAMIC_DISPATCH(apply_rope_##suffix)(rotary, first, last);          \
             });                                                                        \
  }                                                                                     \
  template <>                                                                           \
  void apply_rope_backward_(const Rotary<T>& rotary) {                                  \
    for_rows(rotary.rows, rotary.heads* rotary.head_dim,                                \
             [&](std::int64_t first, std::int64_t last) {                               \
               HWY_DYNAMIC_DISPATCH(apply_rope_backward_##suffix)(rotary, first, last); \
             });                                                                        \
  }

PREFOPT_KERNELS(float, float)
PREFOPT_KERNELS(double, double)

#undef PREFOPT_KERNELS

}  // namespace prefopt::kernels::cpu
#endif
