// SPDX-License-Identifier: Apache-2.0
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/thin_linear.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
//
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/thin_linear.h"
#include "kernels/cpu/widen-inl.h"

#ifndef PREFOPT_THIN_LINEAR_TILE
#define PREFOPT_THIN_LINEAR_TILE
namespace prefopt::kernels::cpu {

/// Memory that is fetched while there is something else to compute, a few cache lines at a time.
struct Ahead {
  const char* next = nullptr;
  std::int64_t bytes = 0, bytes_at_once = 0;
};

/// The product of some rows of a weight, [out, in] without gaps, and of x; to `result` [rows, out].
template <class T>
struct ThinTile {
  const T* weight;
  std::int64_t in, out, rows;
  Rows<const T> x;
  Rows<T> result;
  Ahead ahead;
};

}  // namespace prefopt::kernels::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace prefopt::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sums of kOut × kRows registers, one of each row of x, and one of the weight. Few rows take more
// outputs, so that no sum waits for its last addition.
constexpr int kOut = 4, kManyOut = 8;
#if HWY_TARGET <= HWY_AVX3
constexpr int kRows = 6, kRowsOfManyOut = 2;
#else
constexpr int kRows = 3, kRowsOfManyOut = 1;
#endif

// The numbers of a row that are one sum of lanes: they and those of x stay in a first-level cache.
constexpr std::int64_t kDepth = 768;

constexpr std::int64_t kLine = 64;

// To the second-level cache: the first has no room for what is not used yet.
inline void fetch(Ahead& ahead) {
  const std::int64_t bytes = std::min(ahead.bytes, ahead.bytes_at_once);
  for (std::int64_t i = 0; i < bytes; i += kLine)
    __builtin_prefetch(ahead.next + i, /*rw=*/0, /*locality=*/2);
  ahead.next += bytes;
  ahead.bytes -= bytes;
}

// (l0 + l1) + (l2 + l3), and so on.
template <class D>
HWY_INLINE hn::TFromD<D> sum_of_lanes(D d, hn::Vec<D> sums) {
  HWY_ALIGN hn::TFromD<D> lanes[hn::MaxLanes(D())];
  hn::Store(sums, d, lanes);
  for (std::size_t count = hn::Lanes(d); count > 1; count /= 2) {
    for (std::size_t i = 0; i < count / 2; ++i) lanes[i] = lanes[2 * i] + lanes[2 * i + 1];
  }
  return lanes[0];
}

template <class T>
HWY_INLINE void put_number(T value, bool add, T* target) {
  *target = add ? *target + value : value;
}

// The sums of kN rows and kM outputs, of which `sums` holds the lanes.
template <int kM, int kN, class D, class T = hn::TFromD<D>>
HWY_INLINE void put_sums(D d, hn::Vec<D> (&sums)[kN][kM], bool add, Rows<T> result) {
#if HWY_TARGET != HWY_SCALAR
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  if constexpr (kM % kOut == 0 && kLanes >= kOut && kLanes <= kOut * kOut) {
    // Neighbours are added and two vectors become one, until one vector is full of whole sums:
    // those of kOut outputs of a row, and as many more of such fours as it has room for.
    constexpr int kOfRow = kM / kOut, kAtOnce = kLanes / kOut;
    const auto join = [&](auto a, auto b) HWY_ATTR {
      return hn::Add(hn::ConcatEven(d, b, a), hn::ConcatOdd(d, b, a));
    };
    const hn::CappedTag<T, kOut> of_four;
    HWY_UNROLL(6)
    for (int first = 0; first < kN * kOfRow; first += kAtOnce) {
      hn::Vec<D> fours[kAtOnce];
      HWY_UNROLL(4)
      for (int i = 0; i < kAtOnce; ++i) {
        fours[i] = hn::Zero(d);
        if (first + i >= kN * kOfRow) continue;
        const auto* of = sums[(first + i) / kOfRow] + (first + i) % kOfRow * kOut;
        fours[i] = join(join(of[0], of[1]), join(of[2], of[3]));
      }
      for (int count = kAtOnce; count > 1; count /= 2) {
        for (int i = 0; i < count / 2; ++i) fours[i] = join(fours[2 * i], fours[2 * i + 1]);
      }
      HWY_ALIGN T all[kLanes];
      hn::Store(fours[0], d, all);
      for (int i = 0; i < kAtOnce && first + i < kN * kOfRow; ++i) {
        T* target = result[(first + i) / kOfRow] + (first + i) % kOfRow * kOut;
        auto value = hn::Load(of_four, all + i * kOut);
        if (add) value = hn::Add(hn::LoadU(of_four, target), value);
        hn::StoreU(value, of_four, target);
      }
    }
    return;
  }
#endif
  for (int n = 0; n < kN; ++n) {
    for (int m = 0; m < kM; ++m) put_number(sum_of_lanes(d, sums[n][m]), add, result[n] + m);
  }
}

template <int kM, int kN, class T>
HWY_INLINE void multiply_registers(const T* HWY_RESTRICT weight, std::int64_t stride,
                                   Rows<const T> x, std::int64_t depth, bool add, Rows<T> result) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sums[kN][kM];
  HWY_UNROLL(6)
  for (int n = 0; n < kN; ++n) {
    HWY_UNROLL(8)
    for (int m = 0; m < kM; ++m) sums[n][m] = hn::Zero(d);
  }
  const auto step = [&](std::int64_t k, auto&& load) HWY_ATTR {
    hn::Vec<decltype(d)> of_x[kN];
    HWY_UNROLL(6)
    for (int n = 0; n < kN; ++n) of_x[n] = load(x[n] + k);
    HWY_UNROLL(8)
    for (int m = 0; m < kM; ++m) {
      const auto of_weight = load(weight + m * stride + k);
      HWY_UNROLL(6)
      for (int n = 0; n < kN; ++n) sums[n][m] = hn::MulAdd(of_weight, of_x[n], sums[n][m]);
    }
  };
  std::int64_t k = 0;
  for (; k + lanes <= depth; k += lanes) {
    step(k, [&](const T* at) HWY_ATTR { return hn::LoadU(d, at); });
  }
  if (k < depth) {
    const std::int64_t rest = depth - k;
    step(k, [&](const T* at) HWY_ATTR {
      HWY_ALIGN T numbers[hn::MaxLanes(decltype(d)())] = {};
      std::copy_n(at, rest, numbers);
      return hn::Load(d, numbers);
    });
  }
  put_sums<kM, kN>(d, sums, add, result);
}

// As many rows as `rows`, at most kN.
template <int kM, class T, int kN = kRows>
void multiply_rows(const ThinTile<T>& tile, std::int64_t first_out, std::int64_t first_row,
                   std::int64_t rows, std::int64_t begin, std::int64_t depth) {
  if constexpr (kN > 1) {
    if (rows < kN) {
      return multiply_rows<kM, T, kN - 1>(tile, first_out, first_row, rows, begin, depth);
    }
  }
  multiply_registers<kM, kN, T>(tile.weight + first_out * tile.in + begin, tile.in,
                                {tile.x[first_row] + begin, tile.x.stride}, depth, begin > 0,
                                {tile.result[first_row] + first_out, tile.result.stride});
}

template <class T>
void multiply_thin(ThinTile<T> tile) {
  // Rows as evenly as they go, so that no few are left over for the last registers.
  const std::int64_t groups = (tile.rows + kRows - 1) / kRows;
  const std::int64_t calls = (tile.in / kDepth + 1) * groups * (tile.out / kOut + 1);
  tile.ahead.bytes_at_once = (tile.ahead.bytes / calls / kLine + 1) * kLine;
  for (std::int64_t begin = 0; begin == 0 || begin < tile.in; begin += kDepth) {
    const std::int64_t depth = std::min(kDepth, tile.in - begin);
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t first = group * tile.rows / groups;
      const std::int64_t rows = (group + 1) * tile.rows / groups - first;
      std::int64_t out = 0;
      for (; rows <= kRowsOfManyOut && out + kManyOut <= tile.out; out += kManyOut) {
        fetch(tile.ahead);
        multiply_rows<kManyOut, T, kRowsOfManyOut>(tile, out, first, rows, begin, depth);
      }
      for (; out + kOut <= tile.out; out += kOut) {
        fetch(tile.ahead);
        multiply_rows<kOut>(tile, out, first, rows, begin, depth);
      }
      for (; out < tile.out; ++out) multiply_rows<1>(tile, out, first, rows, begin, depth);
    }
  }
}

// A name for each type: what is exported to the dispatcher cannot be a template.
void multiply_thin_float(const ThinTile<float>& tile) { multiply_thin(tile); }
void multiply_thin_double(const ThinTile<double>& tile) { multiply_thin(tile); }
void widen_bfloat16(const c10::BFloat16* source, std::int64_t size, float* out) {
  widen(source, size, out);
}
void widen_half(const c10::Half* source, std::int64_t size, float* out) {
  widen(source, size, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace prefopt::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include "core/parallel.h"
#include "kernels/cpu/gemm.h"

namespace prefopt::kernels::cpu {
namespace {

HWY_EXPORT(multiply_thin_float);
HWY_EXPORT(multiply_thin_double);
HWY_EXPORT(widen_bfloat16);
HWY_EXPORT(widen_half);

// Results, and rows of a weight, of one task.
constexpr std::int64_t kOutAtOnce = 48;
// Rows of x whose results are kept until they are whole.
constexpr std::int64_t kRowsAtOnce = 96;
// Numbers of a weight that are decoded at once: few, so that they are still in the nearest cache
// where few rows go past them.
constexpr std::int64_t kFewRows = 8, kFewNumbers = 6144, kManyNumbers = 24 * 1536;

void multiply(const ThinTile<float>& tile) { HWY_DYNAMIC_DISPATCH(multiply_thin_float)(tile); }
void multiply(const ThinTile<double>& tile) { HWY_DYNAMIC_DISPATCH(multiply_thin_double)(tile); }

void widen(const c10::BFloat16* source, std::int64_t size, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_bfloat16)(source, size, out);
}
void widen(const c10::Half* source, std::int64_t size, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_half)(source, size, out);
}

template <class T>
bool lies_as_numbers(const ThinLinear<T>& product) {
  return std::holds_alternative<const T*>(product.weight);
}

/// Returns how many rows of a weight are taken at once.
template <class T>
std::int64_t rows_at_once(const ThinLinear<T>& product) {
  const std::int64_t numbers = product.rows <= kFewRows ? kFewNumbers : kManyNumbers;
  return std::clamp<std::int64_t>(numbers / (product.in + 1) / 4 * 4, 4, kOutAtOnce / 2);
}

/// Returns rows of a weight as they lie in memory; no bytes where they do not follow each other.
template <class T>
Ahead source_of(const ThinLinear<T>& product, std::int64_t first, std::int64_t count) {
  return std::visit(
      [&](const auto& weight) -> Ahead {
        using Weight = std::remove_cvref_t<decltype(weight)>;
        if constexpr (std::is_same_v<Weight, BlockMatrix>) {
          if (weight.places != nullptr) return {};
          const std::int64_t bytes = weight.row_bytes();
          return {reinterpret_cast<const char*>(weight.data + first * bytes), count * bytes};
        } else {
          const std::int64_t bytes = product.in * static_cast<std::int64_t>(sizeof *weight);
          return {reinterpret_cast<const char*>(weight) + first * bytes, count * bytes};
        }
      },
      product.weight);
}

// The buffers that a thread needs for its tasks.
template <class T>
class Workplace {
 public:
  explicit Workplace(std::span<const ThinLinear<T>> products) {
    std::int64_t results = 0, weight = 0;
    for (const ThinLinear<T>& product : products) {
      const std::int64_t out = rows_at_once(product);
      results = std::max(results, out * std::min(product.rows, kRowsAtOnce));
      if (!lies_as_numbers(product)) weight = std::max(weight, out * product.in);
    }
    results_ = Buffer<T>(results);
    weight_ = Buffer<T>(weight);
  }

  /// Results [first, last) of a product.
  void run(const ThinLinear<T>& product, std::int64_t first, std::int64_t last) {
    const std::int64_t step = rows_at_once(product);
    for (std::int64_t out = first; out < last; out += step) {
      const std::int64_t next = std::min(last, out + step);
      run_few(product, out, next - out, source_of(product, next, std::min(step, last - next)));
    }
  }

 private:
  void run_few(const ThinLinear<T>& product, std::int64_t first, std::int64_t count, Ahead ahead) {
    const T* weight = weight_rows(product, first, count);
    for (std::int64_t row = 0; row < product.rows; row += kRowsAtOnce) {
      const std::int64_t rows = std::min(kRowsAtOnce, product.rows - row);
      multiply(ThinTile<T>{.weight = weight,
                           .in = product.in,
                           .out = count,
                           .rows = rows,
                           .x = {product.x[row], product.x.stride},
                           .result = {results_.data(), count},
                           .ahead = ahead});
      ahead = {};
      put(product, first, count, row, rows);
    }
  }

  void put(const ThinLinear<T>& product, std::int64_t first, std::int64_t count, std::int64_t row,
           std::int64_t rows) const {
    for (std::int64_t i = 0; i < rows; ++i) {
      const T* result = results_.data() + i * count;
      T* y = product.y[row + i] + first;
      for (std::int64_t out = 0; out < count; ++out) {
        T value = result[out];
        if (product.bias != nullptr) value += product.bias[first + out];
        y[out] = product.accumulate ? y[out] + value : value;
      }
    }
  }

  const T* weight_rows(const ThinLinear<T>& product, std::int64_t first, std::int64_t count) {
    const std::int64_t offset = first * product.in;
    return std::visit(
        [&](const auto& weight) -> const T* {
          using Weight = std::remove_cvref_t<decltype(weight)>;
          if constexpr (std::is_same_v<Weight, const T*>) {
            return weight + offset;
          } else if constexpr (std::is_same_v<Weight, BlockMatrix>) {
            decode_rows(weight, first, count, weight_.data());
            return weight_.data();
          } else {
            widen(weight + offset, count * product.in, weight_.data());
            return weight_.data();
          }
        },
        product.weight);
  }

  Buffer<T> results_, weight_;
};

}  // namespace

template <class T>
void thin_linear(std::span<const ThinLinear<T>> products) {
  const auto tasks_of = [](const ThinLinear<T>& product) {
    return product.rows == 0 ? 0 : (product.out + kOutAtOnce - 1) / kOutAtOnce;
  };
  std::int64_t tasks = 0;
  for (const ThinLinear<T>& product : products) tasks += tasks_of(product);
  parallel_for(0, tasks, 1, [&](std::int64_t first, std::int64_t last) {
    Workplace<T> workplace(products);
    std::int64_t begin = 0;
    for (const ThinLinear<T>& product : products) {
      const std::int64_t end = begin + tasks_of(product);
      const std::int64_t from = std::max(first, begin), to = std::min(last, end);
      if (from < to) {
        workplace.run(product, (from - begin) * kOutAtOnce,
                      std::min(product.out, (to - begin) * kOutAtOnce));
      }
      begin = end;
    }
  });
}

template void thin_linear(std::span<const ThinLinear<float>>);
template void thin_linear(std::span<const ThinLinear<double>>);

}  // namespace prefopt::kernels::cpu
#endif
