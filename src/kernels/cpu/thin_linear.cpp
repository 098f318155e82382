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

/// Memory that is fetched while there is something else to compute.
struct Ahead {
  const char* next = nullptr;
  std::int64_t bytes = 0;
};

/// The product of some rows of a weight, [out, in] without gaps, and of x; to y, plus the bias
/// where there is one. `part` [rows, out] holds the sums of the numbers so far.
template <class T>
struct ThinTile {
  const T* weight;
  std::int64_t in, out, rows;
  Rows<const T> x;
  Rows<T> part;
  const T* bias;
  Rows<T> y;
  bool accumulate;
  Ahead ahead;
};

/// Where sums go: to those of the numbers before, and after the last number to y.
template <class T>
struct ThinSums {
  bool first, last, accumulate;
  Rows<T> part;
  const T* bias;
  Rows<T> y;
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

// Fetches memory to the second-level cache, as the first has no room for what is not used yet.
// Lines that all leave at once keep those waiting that the next steps of a product need, so each
// step fetches one, or the same again, which costs less than to ask whether it is another.
// (GCC takes a const member that only prefetches for one without effect, and drops its calls.)
class Fetcher {
 public:
  Fetcher(const Ahead& ahead, std::int64_t steps)
      : next_(ahead.next), bytes_a_step_(steps == 0 ? 0 : ahead.bytes / steps) {}

  /// Fetches what `count` steps leave.
  HWY_INLINE void before(std::int64_t count) {
    const char* const end = next_ + count * (bytes_a_step_ - bytes_within());
    for (; next_ < end; next_ += kLine) __builtin_prefetch(next_, /*rw=*/0, /*locality=*/2);
  }

  HWY_INLINE void step() {
    __builtin_prefetch(next_, /*rw=*/0, /*locality=*/2);
    next_ += bytes_within();
  }

 private:
  std::int64_t bytes_within() const { return std::min(bytes_a_step_, kLine); }

  const char* next_;
  std::int64_t bytes_a_step_;
};

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

// As many values as `d` has lanes, of a row and of outputs from `out` on.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void put(D d, hn::Vec<D> value, const ThinSums<T>& to, std::int64_t row,
                    std::int64_t out) {
  T* part = to.part[row] + out;
  if (!to.first) value = hn::Add(hn::LoadU(d, part), value);
  if (!to.last) return hn::StoreU(value, d, part);
  T* y = to.y[row] + out;
  if (to.bias != nullptr) value = hn::Add(value, hn::LoadU(d, to.bias + out));
  if (to.accumulate) value = hn::Add(hn::LoadU(d, y), value);
  hn::StoreU(value, d, y);
}

// The sums of kN rows and kM outputs, of which `sums` holds the lanes.
template <int kM, int kN, class D, class T = hn::TFromD<D>>
HWY_INLINE void put_sums(D d, hn::Vec<D> (&sums)[kN][kM], const ThinSums<T>& to) {
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
        put(of_four, hn::Load(of_four, all + i * kOut), to, (first + i) / kOfRow,
            (first + i) % kOfRow * kOut);
      }
    }
    return;
  }
#endif
  const hn::CappedTag<T, 1> of_one;
  for (int n = 0; n < kN; ++n) {
    for (int m = 0; m < kM; ++m)
      put(of_one, hn::Set(of_one, sum_of_lanes(d, sums[n][m])), to, n, m);
  }
}

template <int kM, int kN, class T>
HWY_INLINE void multiply_registers(const T* HWY_RESTRICT weight, std::int64_t stride,
                                   Rows<const T> x, std::int64_t depth, Fetcher& fetcher,
                                   const ThinSums<T>& to) {
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
  Fetcher ahead = fetcher;  // in registers
  ahead.before(depth / lanes);
  std::int64_t k = 0;
  for (; k + lanes <= depth; k += lanes) {
    ahead.step();
    step(k, [&](const T* at) HWY_ATTR { return hn::LoadU(d, at); });
  }
  fetcher = ahead;
  if (k < depth) {
    const std::int64_t rest = depth - k;
    step(k, [&](const T* at) HWY_ATTR {
      HWY_ALIGN T numbers[hn::MaxLanes(decltype(d)())] = {};
      std::copy_n(at, rest, numbers);
      return hn::Load(d, numbers);
    });
  }
  put_sums<kM, kN>(d, sums, to);
}

// As many rows as `rows`, at most kN.
template <int kM, class T, int kN = kRows>
void multiply_rows(const ThinTile<T>& tile, std::int64_t first_out, std::int64_t first_row,
                   std::int64_t rows, std::int64_t begin, std::int64_t depth, Fetcher& ahead) {
  if constexpr (kN > 1) {
    if (rows < kN) {
      return multiply_rows<kM, T, kN - 1>(tile, first_out, first_row, rows, begin, depth, ahead);
    }
  }
  multiply_registers<kM, kN, T>(tile.weight + first_out * tile.in + begin, tile.in,
                                {tile.x[first_row] + begin, tile.x.stride}, depth, ahead,
                                {.first = begin == 0,
                                 .last = begin + depth == tile.in,
                                 .accumulate = tile.accumulate,
                                 .part = {tile.part[first_row] + first_out, tile.part.stride},
                                 .bias = tile.bias == nullptr ? nullptr : tile.bias + first_out,
                                 .y = {tile.y[first_row] + first_out, tile.y.stride}});
}

template <class T>
void multiply_thin(const ThinTile<T>& tile) {
  // Rows as evenly as they go, so that no few are left over for the last registers.
  const std::int64_t groups = (tile.rows + kRows - 1) / kRows;
  const bool are_few = tile.rows <= kRowsOfManyOut;
  const std::int64_t calls =
      are_few ? tile.out / kManyOut + tile.out % kManyOut / kOut : tile.out / kOut * groups;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<T>()));
  Fetcher ahead(tile.ahead, calls * (tile.in / lanes));
  for (std::int64_t begin = 0; begin == 0 || begin < tile.in; begin += kDepth) {
    const std::int64_t depth = std::min(kDepth, tile.in - begin);
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t first = group * tile.rows / groups;
      const std::int64_t rows = (group + 1) * tile.rows / groups - first;
      std::int64_t out = 0;
      for (; are_few && out + kManyOut <= tile.out; out += kManyOut) {
        multiply_rows<kManyOut, T, kRowsOfManyOut>(tile, out, first, rows, begin, depth, ahead);
      }
      for (; out + kOut <= tile.out; out += kOut) {
        multiply_rows<kOut>(tile, out, first, rows, begin, depth, ahead);
      }
      for (; out < tile.out; ++out) multiply_rows<1>(tile, out, first, rows, begin, depth, ahead);
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

// Results of one task.
constexpr std::int64_t kOutAtOnce = 48;
// Rows of x at a time.
constexpr std::int64_t kRowsAtOnce = 96;
// Rows of a weight that are taken at once: kDepth numbers of each are in the nearest cache until
// the last rows of x have gone past them. Where those are few, so is what is decoded for them.
constexpr std::int64_t kWeightRows = 8, kFewRows = 8, kFewNumbers = 6144;

void multiply(const ThinTile<float>& tile) { HWY_DYNAMIC_DISPATCH(multiply_thin_float)(tile); }
void multiply(const ThinTile<double>& tile) { HWY_DYNAMIC_DISPATCH(multiply_thin_double)(tile); }

void widen(const c10::BFloat16* source, std::int64_t size, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_bfloat16)(source, size, out);
}
void widen(const c10::Half* source, std::int64_t size, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_half)(source, size, out);
}

/// Returns whether a weight is read where it lies. Many rows read it often, and a register that
/// lies across two cache lines takes twice as long.
template <class T>
bool is_read_in_place(const ThinLinear<T>& product) {
  const auto* numbers = std::get_if<const T*>(&product.weight);
  if (numbers == nullptr) return false;
  constexpr std::uintptr_t kRegister = 64;
  return product.rows <= kFewRows || reinterpret_cast<std::uintptr_t>(*numbers) % kRegister == 0;
}

/// Returns how many rows of a weight are taken at once.
template <class T>
std::int64_t rows_at_once(const ThinLinear<T>& product) {
  if (product.rows > kFewRows) return kWeightRows;
  return std::clamp<std::int64_t>(kFewNumbers / (product.in + 1) / 4 * 4, 4, kOutAtOnce / 2);
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
    std::int64_t parts = 0, weight = 0;
    for (const ThinLinear<T>& product : products) {
      const std::int64_t out = rows_at_once(product);
      parts = std::max(parts, out * std::min(product.rows, kRowsAtOnce));
      if (!is_read_in_place(product)) weight = std::max(weight, out * product.in);
    }
    parts_ = Buffer<T>(parts);
    weight_ = Buffer<T>(weight);
  }

  /// Results [first, last) of a product. Some rows of x at a time, so that they stay in a cache
  /// while all of the task's weight goes past them.
  void run(const ThinLinear<T>& product, std::int64_t first, std::int64_t last) {
    const std::int64_t step = rows_at_once(product);
    for (std::int64_t row = 0; row < product.rows; row += kRowsAtOnce) {
      for (std::int64_t out = first; out < last; out += step) {
        const std::int64_t next = std::min(last, out + step);
        const Ahead ahead =
            row > 0 ? Ahead{} : source_of(product, next, std::min(step, last - next));
        run_few(product, out, next - out, row, ahead);
      }
    }
  }

 private:
  void run_few(const ThinLinear<T>& product, std::int64_t first, std::int64_t count,
               std::int64_t row, const Ahead& ahead) {
    multiply(ThinTile<T>{.weight = weight_rows(product, first, count),
                         .in = product.in,
                         .out = count,
                         .rows = std::min(kRowsAtOnce, product.rows - row),
                         .x = {product.x[row], product.x.stride},
                         .part = {parts_.data(), count},
                         .bias = product.bias == nullptr ? nullptr : product.bias + first,
                         .y = {product.y[row] + first, product.y.stride},
                         .accumulate = product.accumulate,
                         .ahead = ahead});
  }

  const T* weight_rows(const ThinLinear<T>& product, std::int64_t first, std::int64_t count) {
    const std::int64_t offset = first * product.in;
    return std::visit(
        [&](const auto& weight) -> const T* {
          using Weight = std::remove_cvref_t<decltype(weight)>;
          if constexpr (std::is_same_v<Weight, const T*>) {
            if (is_read_in_place(product)) return weight + offset;
            std::copy_n(weight + offset, count * product.in, weight_.data());
            return weight_.data();
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

  Buffer<T> parts_, weight_;
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
