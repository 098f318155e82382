// SPDX-License-Identifier: Apache-2.0
// The product behind the output head. A GEMM library writes its result to memory, packs the large
// factor on each call and knows nothing of what follows; here the small factor is packed once, a
// block of logits is used while it is in the cache, and the large factor is read where it lies.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
//
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/gemm.h"

HWY_BEFORE_NAMESPACE();
namespace prefopt::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Accumulators of kRows x kVectors registers, plus one row of b and one element of a.
#if HWY_TARGET <= HWY_AVX3
constexpr int kRows = 8;
constexpr int kVectors = 3;
#else
constexpr int kRows = 6;
constexpr int kVectors = 2;
#endif
static_assert(kRowGrain % kRows == 0);

// Rows of a at once: with a depth of kDepthAtOnce they and one panel of b stay in a second-level
// cache.
constexpr std::int64_t kRowsAtOnce = kRowGrain;

// The left factor: kRows rows begin `block_stride` numbers after the kRows rows before them.
template <class T>
struct LeftFactor {
  StridedMatrix<T> rows;
  std::int64_t block_stride;
};

template <class T, int kM, int kN>
HWY_INLINE void multiply_registers(StridedMatrix<T> a, std::int64_t depth, const T* HWY_RESTRICT b,
                                   T* HWY_RESTRICT c, std::int64_t c_stride, bool accumulate) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sums[kM][kN];
  HWY_UNROLL(8)
  for (int i = 0; i < kM; ++i) {
    HWY_UNROLL(3)
    for (int j = 0; j < kN; ++j) sums[i][j] = hn::Zero(d);
  }
  const T* HWY_RESTRICT left = a.data;
  for (std::int64_t k = 0; k < depth; ++k) {
    hn::Vec<decltype(d)> row[kN];
    HWY_UNROLL(3)
    for (int j = 0; j < kN; ++j) row[j] = hn::Load(d, b + j * lanes);
    HWY_UNROLL(8)
    for (int i = 0; i < kM; ++i) {
      const auto element = hn::Set(d, left[i * a.row_stride]);
      HWY_UNROLL(3)
      for (int j = 0; j < kN; ++j) sums[i][j] = hn::MulAdd(element, row[j], sums[i][j]);
    }
    left += a.column_stride;
    b += kN * lanes;
  }
  // The present value, a residual say, is added at the end, once for each part of the depth: in a
  // sum that began with it each term would be rounded to its size.
  HWY_UNROLL(8)
  for (int i = 0; i < kM; ++i) {
    HWY_UNROLL(3)
    for (int j = 0; j < kN; ++j) {
      T* target = c + i * c_stride + j * lanes;
      hn::StoreU(accumulate ? hn::Add(hn::LoadU(d, target), sums[i][j]) : sums[i][j], d, target);
    }
  }
}

// At the right edge of c, `columns` < width, the rows go through a buffer.
template <class T, int kM, int kN>
HWY_INLINE void multiply_rows(StridedMatrix<T> a, std::int64_t depth, const T* b, T* c,
                              std::int64_t c_stride, std::int64_t columns, bool accumulate) {
  const std::int64_t width = kN * static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<T>()));
  if (columns == width) {
    return multiply_registers<T, kM, kN>(a, depth, b, c, c_stride, accumulate);
  }
  HWY_ALIGN T edge[kM * kN * HWY_MAX_BYTES / sizeof(T)] = {};
  for (int i = 0; i < kM && accumulate; ++i) {
    std::copy(c + i * c_stride, c + i * c_stride + columns, edge + i * width);
  }
  multiply_registers<T, kM, kN>(a, depth, b, edge, width, accumulate);
  for (int i = 0; i < kM; ++i) {
    std::copy(edge + i * width, edge + i * width + columns, c + i * c_stride);
  }
}

// The last rows, fewer than kRows, as 4, 2 and 1 at once.
template <class T, int kN, int kM = 4>
void multiply_last_rows(StridedMatrix<T> a, std::int64_t rows, std::int64_t depth, const T* b, T* c,
                        std::int64_t c_stride, std::int64_t columns, bool accumulate) {
  if (rows >= kM) {
    multiply_rows<T, kM, kN>(a, depth, b, c, c_stride, columns, accumulate);
    a.data += kM * a.row_stride;
    c += kM * c_stride;
    rows -= kM;
  }
  if constexpr (kM > 1) {
    multiply_last_rows<T, kN, kM / 2>(a, rows, depth, b, c, c_stride, columns, accumulate);
  }
}

template <class T, int kN>
void multiply_panel(LeftFactor<T> a, std::int64_t rows, std::int64_t depth, const T* b, T* c,
                    std::int64_t c_stride, std::int64_t columns, bool accumulate) {
  for (; rows >= kRows; rows -= kRows) {
    multiply_rows<T, kRows, kN>(a.rows, depth, b, c, c_stride, columns, accumulate);
    a.rows.data += a.block_stride;
    c += kRows * c_stride;
  }
  multiply_last_rows<T, kN>(a.rows, rows, depth, b, c, c_stride, columns, accumulate);
}

template <class T>
void multiply_all(LeftFactor<T> a, std::int64_t rows, std::int64_t depth, const PackedMatrix<T>& b,
                  std::int64_t first, std::int64_t last, ProductTarget<T> c) {
  const hn::ScalableTag<T> d;
  const std::int64_t vectors = b.width() / static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t step = std::max<std::int64_t>(part_size(depth, kDepthAtOnce), 1);
  for (std::int64_t k = 0; k == 0 || k < depth; k += step) {
    const std::int64_t part = std::min(step, depth - k);
    const bool accumulate = c.accumulate || k > 0;
    for (std::int64_t i = 0; i < rows; i += kRowsAtOnce) {
      const std::int64_t count = std::min(kRowsAtOnce, rows - i);
      LeftFactor<T> left = a;
      left.rows.data += i / kRows * a.block_stride + k * a.rows.column_stride;
      for (std::int64_t p = first; p < last; ++p) {
        const T* right = b.panel(p) + k * b.width();
        T* out = c.data + i * c.row_stride + p * b.width();
        const std::int64_t columns = std::min(b.width(), c.columns - p * b.width());
        switch (vectors) {
          case 1:
            multiply_panel<T, 1>(left, count, part, right, out, c.row_stride, columns, accumulate);
            break;
          case 2:
            multiply_panel<T, 2>(left, count, part, right, out, c.row_stride, columns, accumulate);
            break;
          default:
            multiply_panel<T, kVectors>(left, count, part, right, out, c.row_stride, columns,
                                        accumulate);
        }
      }
    }
  }
}

template <class T>
void multiply_rows_in_place(StridedMatrix<T> a, std::int64_t rows, std::int64_t depth,
                            const PackedMatrix<T>& b, std::int64_t first, std::int64_t last,
                            ProductTarget<T> c) {
  multiply_all<T>({a, kRows * a.row_stride}, rows, depth, b, first, last, c);
}

template <class T>
void multiply_packed_rows(const PackedRows<T>& a, std::int64_t first_block, std::int64_t rows,
                          std::int64_t depth, const PackedMatrix<T>& b, std::int64_t first,
                          std::int64_t last, ProductTarget<T> c) {
  multiply_all<T>({{a.block(first_block), 1, kRows}, a.block_stride()}, rows, depth, b, first, last,
                  c);
}

// --- packing ----------------------------------------------------------------------------------

template <class D>
HWY_INLINE hn::Vec<D> load_wide(D d, const hn::TFromD<D>* source) {
  return hn::LoadU(d, source);
}
template <class D>
HWY_INLINE hn::Vec<D> load_wide(D d, const c10::BFloat16* source) {
  const hn::RebindToUnsigned<D> bits;
  const hn::Rebind<std::uint16_t, D> halves;
  const auto upper = hn::LoadU(halves, reinterpret_cast<const std::uint16_t*>(source));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(bits, upper)));
}

template <class T, class Source>
HWY_INLINE void pack_numbers(StridedMatrix<Source> source, std::int64_t depth, std::int64_t columns,
                             std::int64_t width, T* HWY_RESTRICT out) {
  for (std::int64_t k = 0; k < depth; ++k) {
    for (std::int64_t j = 0; j < columns; ++j) {
      out[k * width + j] =
          static_cast<T>(source.data[k * source.row_stride + j * source.column_stride]);
    }
  }
}

// Rows of the panel lie in rows of the source.
template <class T, class Source>
void pack_rows(StridedMatrix<Source> source, std::int64_t depth, std::int64_t columns,
               std::int64_t width, T* HWY_RESTRICT out) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t k = 0; k < depth; ++k) {
    std::int64_t j = 0;
    for (; j + lanes <= columns; j += lanes) hn::Store(load_wide(d, source.data + j), d, out + j);
    for (; j < columns; ++j) out[j] = static_cast<T>(source.data[j]);
    source.data += source.row_stride;
    out += width;
  }
}

#if HWY_TARGET != HWY_SCALAR
// A square of as many columns of the source as a vector of 16 bytes has lanes.
template <class T, class Source>
HWY_INLINE void pack_square(const Source* HWY_RESTRICT source, std::int64_t column_stride,
                            std::int64_t width, T* HWY_RESTRICT out) {
  const hn::Full128<T> d;
  const auto a = load_wide(d, source);
  const auto b = load_wide(d, source + column_stride);
  if constexpr (sizeof(T) == sizeof(double)) {
    hn::StoreU(hn::InterleaveLower(d, a, b), d, out);
    hn::StoreU(hn::InterleaveUpper(d, a, b), d, out + width);
  } else {
    const auto c = load_wide(d, source + 2 * column_stride);
    const auto e = load_wide(d, source + 3 * column_stride);
    const auto lower_ab = hn::InterleaveLower(d, a, b), lower_ce = hn::InterleaveLower(d, c, e);
    const auto upper_ab = hn::InterleaveUpper(d, a, b), upper_ce = hn::InterleaveUpper(d, c, e);
    hn::StoreU(hn::ConcatLowerLower(d, lower_ce, lower_ab), d, out);
    hn::StoreU(hn::ConcatUpperUpper(d, lower_ce, lower_ab), d, out + width);
    hn::StoreU(hn::ConcatLowerLower(d, upper_ce, upper_ab), d, out + 2 * width);
    hn::StoreU(hn::ConcatUpperUpper(d, upper_ce, upper_ab), d, out + 3 * width);
  }
}

// Rows of the panel lie in columns of the source. The processor's prefetching follows few streams,
// so that few columns are read at once, as many as fill a cache line of the panel; and a line of
// the source is used whole before the next one, which may fall into the same set of the cache.
template <class T, class Source>
void pack_columns(StridedMatrix<Source> source, std::int64_t depth, std::int64_t columns,
                  std::int64_t width, T* HWY_RESTRICT out) {
  constexpr std::int64_t kSide = 16 / sizeof(T);
  constexpr std::int64_t kGroup = 64 / sizeof(T), kLine = 64 / sizeof(Source);
  const std::int64_t whole_depth = depth / kSide * kSide, whole_columns = columns / kSide * kSide;
  for (std::int64_t group = 0; group < whole_columns; group += kGroup) {
    const std::int64_t last = std::min(whole_columns, group + kGroup);
    for (std::int64_t line = 0; line < whole_depth; line += kLine) {
      const std::int64_t end = std::min(whole_depth, line + kLine);
      for (std::int64_t j = group; j < last; j += kSide) {
        for (std::int64_t k = line; k < end; k += kSide) {
          pack_square(source.data + j * source.column_stride + k, source.column_stride, width,
                      out + k * width + j);
        }
      }
    }
  }
  StridedMatrix<Source> rest = source;
  rest.data += whole_columns * source.column_stride;
  pack_numbers(rest, whole_depth, columns - whole_columns, width, out + whole_columns);
  rest.data = source.data + whole_depth;
  pack_numbers(rest, depth - whole_depth, columns, width, out + whole_depth * width);
}
#endif

template <class T, class Source>
void pack_panel(StridedMatrix<Source> source, std::int64_t depth, std::int64_t columns,
                std::int64_t width, T* out) {
  if (source.column_stride == 1) {
    pack_rows(source, depth, columns, width, out);
#if HWY_TARGET != HWY_SCALAR
  } else if (source.row_stride == 1) {
    pack_columns(source, depth, columns, width, out);
#endif
  } else {
    pack_numbers(source, depth, columns, width, out);
  }
  for (std::int64_t k = 0; k < depth && columns < width; ++k) {
    std::fill(out + k * width + columns, out + (k + 1) * width, T(0));
  }
}

// Blocks [first, last) of a left factor. A few columns of all of its rows at once: each is a row of
// the source, mostly.
template <class T>
void pack_blocks(StridedMatrix<T> source, std::int64_t rows, std::int64_t depth, std::int64_t first,
                 std::int64_t last, std::int64_t block_stride, T* HWY_RESTRICT out) {
  constexpr std::int64_t kColumns = 8;
  for (std::int64_t begin = 0; begin < depth; begin += kColumns) {
    const std::int64_t end = std::min(depth, begin + kColumns);
    for (std::int64_t block = first; block < last; ++block) {
      const T* in = source.data + block * kRows * source.row_stride;
      T* to = out + block * block_stride;
      const std::int64_t count = std::min<std::int64_t>(kRows, rows - block * kRows);
      for (std::int64_t k = begin; k < end; ++k) {
        if (count == kRows && source.row_stride == 1) {
          std::copy_n(in + k * source.column_stride, kRows, to + k * kRows);
        } else {
          for (std::int64_t i = 0; i < count; ++i) {
            to[k * kRows + i] = in[i * source.row_stride + k * source.column_stride];
          }
        }
      }
    }
  }
}

// A name for each type: what is exported to the dispatcher cannot be a template.
#define PREFOPT_KERNELS(T)                                                                         \
  void multiply_##T(StridedMatrix<T> a, std::int64_t rows, std::int64_t depth,                     \
                    const PackedMatrix<T>& b, std::int64_t first, std::int64_t last,               \
                    ProductTarget<T> c) {                                                          \
    multiply_rows_in_place(a, rows, depth, b, first, last, c);                                     \
  }                                                                                                \
  void multiply_packed_##T(const PackedRows<T>& a, std::int64_t first_block, std::int64_t rows,    \
                           std::int64_t depth, const PackedMatrix<T>& b, std::int64_t first,       \
                           std::int64_t last, ProductTarget<T> c) {                                \
    multiply_packed_rows(a, first_block, rows, depth, b, first, last, c);                          \
  }                                                                                                \
  void pack_blocks_##T(StridedMatrix<T> source, std::int64_t rows, std::int64_t depth,             \
                       std::int64_t first, std::int64_t last, std::int64_t block_stride, T* out) { \
    pack_blocks(source, rows, depth, first, last, block_stride, out);                              \
  }

PREFOPT_KERNELS(float)
PREFOPT_KERNELS(double)

#undef PREFOPT_KERNELS

#define PREFOPT_PACK(Source, T, suffix)                                                      \
  void pack_##suffix(StridedMatrix<Source> source, std::int64_t depth, std::int64_t columns, \
                     std::int64_t width, T* out) {                                           \
    pack_panel(source, depth, columns, width, out);                                          \
  }

PREFOPT_PACK(float, float, float)
PREFOPT_PACK(double, double, double)
PREFOPT_PACK(c10::BFloat16, float, bfloat16)

#undef PREFOPT_PACK

std::int64_t rows_of_block() { return kRows; }

// Bytes of a vector, and vectors of the widest panel.
std::int64_t vector_bytes() {
  return static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<float>()) * sizeof(float));
}
std::int64_t panel_vectors() { return kVectors; }

}  // namespace HWY_NAMESPACE
}  // namespace prefopt::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace prefopt::kernels::cpu {
namespace {

HWY_EXPORT(vector_bytes);
HWY_EXPORT(panel_vectors);
HWY_EXPORT(rows_of_block);

#define PREFOPT_PACK(Source, T, suffix)                                                        \
  HWY_EXPORT(pack_##suffix);                                                                   \
  void pack_in_vectors(StridedMatrix<Source> source, std::int64_t depth, std::int64_t columns, \
                       std::int64_t width, T* out) {                                           \
    HWY_DYNAMIC_DISPATCH(pack_##suffix)(source, depth, columns, width, out);                   \
  }

PREFOPT_PACK(float, float, float)
PREFOPT_PACK(double, double, double)
PREFOPT_PACK(c10::BFloat16, float, bfloat16)

#undef PREFOPT_PACK

#define PREFOPT_KERNELS(T)                                                                      \
  HWY_EXPORT(multiply_##T);                                                                     \
  HWY_EXPORT(multiply_packed_##T);                                                              \
  HWY_EXPORT(pack_blocks_##T);                                                                  \
  void multiply_in_vectors(StridedMatrix<T> a, std::int64_t rows, std::int64_t depth,           \
                           const PackedMatrix<T>& b, std::int64_t first, std::int64_t last,     \
                           ProductTarget<T> c) {                                                \
    HWY_DYNAMIC_DISPATCH(multiply_##T)(a, rows, depth, b, first, last, c);                      \
  }                                                                                             \
  void multiply_in_vectors(const PackedRows<T>& a, std::int64_t first_block, std::int64_t rows, \
                           std::int64_t depth, const PackedMatrix<T>& b, std::int64_t first,    \
                           std::int64_t last, ProductTarget<T> c) {                             \
    HWY_DYNAMIC_DISPATCH(multiply_packed_##T)(a, first_block, rows, depth, b, first, last, c);  \
  }                                                                                             \
  void pack_rows_in_vectors(StridedMatrix<T> source, std::int64_t rows, std::int64_t depth,     \
                            std::int64_t first, std::int64_t last, std::int64_t block_stride,   \
                            T* out) {                                                           \
    HWY_DYNAMIC_DISPATCH(pack_blocks_##T)(source, rows, depth, first, last, block_stride, out); \
  }

PREFOPT_KERNELS(float)
PREFOPT_KERNELS(double)

#undef PREFOPT_KERNELS

struct PanelShape {
  std::int64_t panels, width;
};

// Panels of equal width, none of more than `most` units: 4 are 2 + 2, not 3 + 1.
PanelShape panel_shape(std::int64_t columns, std::int64_t unit, std::int64_t most) {
  const std::int64_t units = (columns + unit - 1) / unit;
  const std::int64_t panels = std::max<std::int64_t>(1, (units + most - 1) / most);
  return {panels, std::max<std::int64_t>(1, (units + panels - 1) / panels) * unit};
}

template <class T>
PanelShape panel_shape(std::int64_t columns, ProductUnit unit) {
  // With a depth of kDepthAtOnce so many strips of tiles stay in a second-level cache.
  constexpr std::int64_t kStripsOfPanel = 8;
  if (unit == ProductUnit::kTiles) {
    return panel_shape(columns, TileStrips::kWidth, kStripsOfPanel);
  }
  // A vector of the scalar target is one number of either type.
  const std::int64_t bytes = HWY_DYNAMIC_DISPATCH(vector_bytes)();
  const std::int64_t lanes =
      std::max<std::int64_t>(1, bytes / static_cast<std::int64_t>(sizeof(T)));
  return panel_shape(columns, lanes, HWY_DYNAMIC_DISPATCH(panel_vectors)());
}

/// Panels as strips.
template <class T>
TileFactor strips_of(const PackedMatrix<T>& b, std::int64_t first, std::int64_t last) {
  const std::int64_t of_panel = b.width() / TileStrips::kWidth;
  return {b.strips(), first * of_panel, std::min(last * of_panel, b.strips().count())};
}

/// The parts of the depth that are one sum each, in whole tiles.
template <class F>
void for_parts_in_tiles(std::int64_t depth, const F& multiply_part) {
  constexpr std::int64_t kGrain = 32;
  const std::int64_t step =
      std::max(part_size(depth, kDepthAtOnce) + kGrain - 1, kGrain) / kGrain * kGrain;
  for (std::int64_t k = 0; k == 0 || k < depth; k += step) {
    multiply_part(k, std::min(step, depth - k));
  }
}

void multiply_in_tiles(StridedMatrix<float> a, std::int64_t rows, std::int64_t depth,
                       const TileFactor& b, ProductTarget<float> c) {
  constexpr std::int64_t kRowsPacked = 128;
  for_parts_in_tiles(depth, [&](std::int64_t k, std::int64_t part) {
    for (std::int64_t i = 0; i < rows; i += kRowsPacked) {
      TileStrips left(TileStrips::Side::kLeft, part, std::min(kRowsPacked, rows - i));
      left.pack(a.from(i, k), part, 0, left.count());
      multiply_tiles({left, 0, left.count()}, left.size(), {b.strips, b.first, b.last, k}, part,
                     {c.data + i * c.row_stride, c.row_stride, c.columns, c.accumulate || k > 0});
    }
  });
}

void multiply_in_tiles(const PackedRows<float>& a, std::int64_t first_block, std::int64_t rows,
                       std::int64_t depth, const TileFactor& b, ProductTarget<float> c) {
  const std::int64_t last = first_block + (rows + TileStrips::kWidth - 1) / TileStrips::kWidth;
  for_parts_in_tiles(depth, [&](std::int64_t k, std::int64_t part) {
    multiply_tiles({a.strips(), first_block, last, k}, rows, {b.strips, b.first, b.last, k}, part,
                   {c.data, c.row_stride, c.columns, c.accumulate || k > 0});
  });
}

}  // namespace

template <class T>
ProductUnit best_unit() {
  return std::is_same_v<T, float> && has_tiles() ? ProductUnit::kTiles : ProductUnit::kVectors;
}

template <class T>
PackedMatrix<T>::PackedMatrix(std::int64_t max_depth, std::int64_t columns, ProductUnit unit)
    : unit_(unit), max_depth_(max_depth), columns_(columns) {
  const PanelShape shape = panel_shape<T>(columns, unit);
  panels_ = shape.panels;
  width_ = shape.width;
  if (unit == ProductUnit::kTiles) {
    strips_ = TileStrips(TileStrips::Side::kRight, max_depth, columns);
  } else {
    buffer_ = Buffer<T>(max_depth * panels_ * width_);
  }
}

template <class T>
std::int64_t PackedMatrix<T>::padded(std::int64_t columns) {
  const ProductUnit unit = best_unit<T>();
  if (unit == ProductUnit::kTiles) {
    return (columns + TileStrips::kWidth - 1) / TileStrips::kWidth * TileStrips::kWidth;
  }
  const PanelShape shape = panel_shape<T>(columns, unit);
  return shape.panels * shape.width;
}

template <class T>
std::int64_t PackedMatrix<T>::width_of(std::int64_t columns, ProductUnit unit) {
  return panel_shape<T>(columns, unit).width;
}

template <class T>
std::int64_t PackedMatrix<T>::bytes(std::int64_t max_depth, std::int64_t columns) {
  return best_unit<T>() == ProductUnit::kTiles
             ? TileStrips::bytes(max_depth, columns)
             : max_depth * padded(columns) * static_cast<std::int64_t>(sizeof(T));
}

template <class T>
PackedRows<T>::PackedRows(std::int64_t max_depth, std::int64_t rows, ProductUnit unit)
    : unit_(unit), max_depth_(max_depth), rows_(rows) {
  if (unit == ProductUnit::kTiles) {
    block_rows_ = TileStrips::kWidth;
    strips_ = TileStrips(TileStrips::Side::kLeft, max_depth, rows);
  } else {
    block_rows_ = HWY_DYNAMIC_DISPATCH(rows_of_block)();
    buffer_ = Buffer<T>(blocks() * block_stride());
  }
}

template <class T>
template <class Source>
void PackedMatrix<T>::pack(StridedMatrix<Source> source, std::int64_t depth, std::int64_t first,
                           std::int64_t last) {
  if constexpr (std::is_same_v<T, float>) {
    if (unit_ == ProductUnit::kTiles) {
      const TileFactor strips = strips_of(*this, first, last);
      const StridedMatrix<Source> columns{source.data, source.column_stride, source.row_stride};
      return strips_.pack(columns, depth, strips.first, strips.last);
    }
  }
  for (std::int64_t p = first; p < last; ++p) {
    const std::int64_t columns = std::clamp<std::int64_t>(columns_ - p * width_, 0, width_);
    pack_in_vectors(source.from(0, p * width_), depth, columns, width_,
                    buffer_.data() + p * max_depth_ * width_);
  }
}

template <class T>
void PackedRows<T>::pack(StridedMatrix<T> source, std::int64_t depth, std::int64_t first,
                         std::int64_t last) {
  if constexpr (std::is_same_v<T, float>) {
    if (unit_ == ProductUnit::kTiles) return strips_.pack(source, depth, first, last);
  }
  pack_rows_in_vectors(source, rows_, depth, first, last, block_stride(), buffer_.data());
}

template <class T>
void multiply(StridedMatrix<T> a, std::int64_t rows, std::int64_t depth, const PackedMatrix<T>& b,
              std::int64_t first, std::int64_t last, ProductTarget<T> c) {
  if constexpr (std::is_same_v<T, float>) {
    if (b.unit() == ProductUnit::kTiles) {
      return multiply_in_tiles(a, rows, depth, strips_of(b, first, last), c);
    }
  }
  multiply_in_vectors(a, rows, depth, b, first, last, c);
}

template <class T>
void multiply(const PackedRows<T>& a, std::int64_t first_block, std::int64_t rows,
              std::int64_t depth, const PackedMatrix<T>& b, std::int64_t first, std::int64_t last,
              ProductTarget<T> c) {
  if constexpr (std::is_same_v<T, float>) {
    if (b.unit() == ProductUnit::kTiles) {
      return multiply_in_tiles(a, first_block, rows, depth, strips_of(b, first, last), c);
    }
  }
  multiply_in_vectors(a, first_block, rows, depth, b, first, last, c);
}

#define PREFOPT_INSTANTIATE(T)                                                                     \
  template class PackedMatrix<T>;                                                                  \
  template class PackedRows<T>;                                                                    \
  template void PackedMatrix<T>::pack(StridedMatrix<T>, std::int64_t, std::int64_t, std::int64_t); \
  template ProductUnit best_unit<T>();                                                             \
  template void multiply(StridedMatrix<T>, std::int64_t, std::int64_t, const PackedMatrix<T>&,     \
                         std::int64_t, std::int64_t, ProductTarget<T>);                            \
  template void multiply(const PackedRows<T>&, std::int64_t, std::int64_t, std::int64_t,           \
                         const PackedMatrix<T>&, std::int64_t, std::int64_t, ProductTarget<T>);

PREFOPT_INSTANTIATE(float)
PREFOPT_INSTANTIATE(double)
template void PackedMatrix<float>::pack(StridedMatrix<c10::BFloat16>, std::int64_t, std::int64_t,
                                        std::int64_t);

#undef PREFOPT_INSTANTIATE

}  // namespace prefopt::kernels::cpu
#endif
