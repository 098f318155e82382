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

/// Results as the product leaves them, [out, rows]: a part of y, transposed.
template <class T>
struct ThinTile {
  const T* data;
  std::int64_t stride, out, rows;
  const T* bias;  ///< of the tile's first result; null: none
};

}  // namespace prefopt::kernels::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace prefopt::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
HWY_INLINE void put_number(const ThinTile<T>& tile, std::int64_t out, std::int64_t row, Rows<T> y,
                           bool accumulate) {
  T value = tile.data[out * tile.stride + row];
  if (tile.bias != nullptr) value += tile.bias[out];
  T* target = y[row] + out;
  *target = accumulate ? *target + value : value;
}

#if HWY_TARGET != HWY_SCALAR
constexpr std::int64_t kVectorBytes = 16;

// Transposes as many rows of a tile as a vector of 16 bytes has lanes.
template <class T, class D = hn::Full128<T>>
HWY_INLINE void transpose_square(const T* source, std::int64_t stride, hn::Vec<D> (&columns)[4]) {
  const D d;
  const auto a = hn::LoadU(d, source);
  const auto b = hn::LoadU(d, source + stride);
  if constexpr (sizeof(T) == sizeof(double)) {
    columns[0] = hn::InterleaveLower(d, a, b);
    columns[1] = hn::InterleaveUpper(d, a, b);
  } else {
    const auto c = hn::LoadU(d, source + 2 * stride);
    const auto e = hn::LoadU(d, source + 3 * stride);
    const auto lower_ab = hn::InterleaveLower(d, a, b), lower_ce = hn::InterleaveLower(d, c, e);
    const auto upper_ab = hn::InterleaveUpper(d, a, b), upper_ce = hn::InterleaveUpper(d, c, e);
    columns[0] = hn::ConcatLowerLower(d, lower_ce, lower_ab);
    columns[1] = hn::ConcatUpperUpper(d, lower_ce, lower_ab);
    columns[2] = hn::ConcatLowerLower(d, upper_ce, upper_ab);
    columns[3] = hn::ConcatUpperUpper(d, upper_ce, upper_ab);
  }
}

template <class T>
HWY_INLINE void put_square(const ThinTile<T>& tile, std::int64_t out, std::int64_t row, Rows<T> y,
                           bool accumulate) {
  constexpr std::int64_t kSide = kVectorBytes / sizeof(T);
  const hn::Full128<T> d;
  hn::Vec<decltype(d)> columns[4];
  transpose_square(tile.data + out * tile.stride + row, tile.stride, columns);
  for (std::int64_t i = 0; i < kSide; ++i) {
    auto value = columns[i];
    if (tile.bias != nullptr) value = hn::Add(value, hn::LoadU(d, tile.bias + out));
    T* target = y[row + i] + out;
    if (accumulate) value = hn::Add(hn::LoadU(d, target), value);
    hn::StoreU(value, d, target);
  }
}
#endif

template <class T>
void put_tile(const ThinTile<T>& tile, Rows<T> y, bool accumulate) {
  std::int64_t whole_rows = 0, whole_out = 0;
#if HWY_TARGET != HWY_SCALAR
  constexpr std::int64_t kSide = kVectorBytes / sizeof(T);
  whole_rows = tile.rows / kSide * kSide;
  whole_out = tile.out / kSide * kSide;
  for (std::int64_t row = 0; row < whole_rows; row += kSide) {
    for (std::int64_t out = 0; out < whole_out; out += kSide) {
      put_square(tile, out, row, y, accumulate);
    }
  }
#endif
  for (std::int64_t row = 0; row < tile.rows; ++row) {
    const std::int64_t first = row < whole_rows ? whole_out : 0;
    for (std::int64_t out = first; out < tile.out; ++out) {
      put_number(tile, out, row, y, accumulate);
    }
  }
}

// A name for each type: what is exported to the dispatcher cannot be a template.
void put_tile_float(const ThinTile<float>& tile, Rows<float> y, bool accumulate) {
  put_tile(tile, y, accumulate);
}
void put_tile_double(const ThinTile<double>& tile, Rows<double> y, bool accumulate) {
  put_tile(tile, y, accumulate);
}
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

namespace prefopt::kernels::cpu {
namespace {

HWY_EXPORT(put_tile_float);
HWY_EXPORT(put_tile_double);
HWY_EXPORT(widen_bfloat16);
HWY_EXPORT(widen_half);

// Results, and rows of a weight, of one task.
constexpr std::int64_t kOutAtOnce = 2 * kRowGrain;

void put(const ThinTile<float>& tile, Rows<float> y, bool accumulate) {
  HWY_DYNAMIC_DISPATCH(put_tile_float)(tile, y, accumulate);
}
void put(const ThinTile<double>& tile, Rows<double> y, bool accumulate) {
  HWY_DYNAMIC_DISPATCH(put_tile_double)(tile, y, accumulate);
}

void widen(const c10::BFloat16* source, std::int64_t size, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_bfloat16)(source, size, out);
}
void widen(const c10::Half* source, std::int64_t size, float* out) {
  HWY_DYNAMIC_DISPATCH(widen_half)(source, size, out);
}

// The buffers that a thread needs for its tasks.
template <class T>
class Workplace {
 public:
  explicit Workplace(std::span<const ThinLinear<T>> products) {
    std::int64_t tile = 0, weight = 0;
    for (const ThinLinear<T>& product : products) {
      tile = std::max(tile, kOutAtOnce * product.x->padded_columns());
      if (!std::holds_alternative<const T*>(product.weight)) {
        weight = std::max(weight, kOutAtOnce * product.in);
      }
    }
    tile_ = Buffer<T>(tile);
    weight_ = Buffer<T>(weight);
  }

  /// Results [first, first + count) of a product.
  void run(const ThinLinear<T>& product, std::int64_t first, std::int64_t count) {
    const PackedMatrix<T>& x = *product.x;
    const std::int64_t stride = x.padded_columns();
    multiply<T>({weight_rows(product, first, count), product.in, 1}, count, product.in, x, 0,
                x.panels(), {tile_.data(), stride, stride, /*accumulate=*/false});
    put(ThinTile<T>{tile_.data(), stride, count, x.columns(),
                    product.bias == nullptr ? nullptr : product.bias + first},
        {product.y.data + first, product.y.stride}, product.accumulate);
  }

 private:
  const T* weight_rows(const ThinLinear<T>& product, std::int64_t first, std::int64_t count) {
    const std::int64_t offset = first * product.in;
    return std::visit(
        [&](const auto& weight) -> const T* {
          using Weight = std::remove_cvref_t<decltype(weight)>;
          if constexpr (std::is_same_v<Weight, const T*>) {
            return weight + offset;
          } else if constexpr (std::is_same_v<Weight, BlockMatrix>) {
            for (std::int64_t i = 0; i < count; ++i) {
              decode_row(weight, first + i, weight_.data() + i * product.in);
            }
            return weight_.data();
          } else {
            widen(weight + offset, count * product.in, weight_.data());
            return weight_.data();
          }
        },
        product.weight);
  }

  Buffer<T> tile_, weight_;
};

}  // namespace

template <class T>
PackedMatrix<T> pack_rows(Rows<const T> x, std::int64_t rows, std::int64_t in) {
  PackedMatrix<T> packed(in, rows);
  parallel_for(0, packed.panels(), 1, [&](std::int64_t first, std::int64_t last) {
    packed.pack({x.data, 1, x.stride}, in, first, last);
  });
  return packed;
}

template <class T>
void thin_linear(std::span<const ThinLinear<T>> products) {
  const auto tasks_of = [](const ThinLinear<T>& product) {
    return (product.out + kOutAtOnce - 1) / kOutAtOnce;
  };
  std::int64_t tasks = 0;
  for (const ThinLinear<T>& product : products) tasks += tasks_of(product);
  parallel_for(0, tasks, 1, [&](std::int64_t first, std::int64_t last) {
    Workplace<T> workplace(products);
    std::int64_t begin = 0;
    for (const ThinLinear<T>& product : products) {
      const std::int64_t end = begin + tasks_of(product);
      for (std::int64_t task = std::max(first, begin); task < std::min(last, end); ++task) {
        const std::int64_t out = (task - begin) * kOutAtOnce;
        workplace.run(product, out, std::min(kOutAtOnce, product.out - out));
      }
      begin = end;
    }
  });
}

template PackedMatrix<float> pack_rows(Rows<const float>, std::int64_t, std::int64_t);
template PackedMatrix<double> pack_rows(Rows<const double>, std::int64_t, std::int64_t);
template void thin_linear(std::span<const ThinLinear<float>>);
template void thin_linear(std::span<const ThinLinear<double>>);

}  // namespace prefopt::kernels::cpu
#endif
