// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/buffer.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/tiles.h"

namespace prefopt::kernels::cpu {

/// The part of a processor that multiplies.
enum class ProductUnit { kVectors, kTiles };

/// Returns the one that is faster for large matrices: tiles for float32, where there are any.
template <class T>
ProductUnit best_unit();

/// The right factor of a product, [depth, columns], in panels of a few vectors: panel p holds
/// columns [p * width, (p + 1) * width) as [depth][width], with zeros beyond the last column. Where
/// the processor multiplies tiles, a float32 panel is some strips of them.
template <class T>
class PackedMatrix {
 public:
  PackedMatrix() = default;
  PackedMatrix(std::int64_t max_depth, std::int64_t columns, ProductUnit unit = best_unit<T>());

  /// Takes panels [first, last) of a matrix of `depth` <= max_depth rows; a source in bfloat16 is
  /// widened. Panels do not touch each other's memory.
  template <class Source = T>
  void pack(StridedMatrix<Source> source, std::int64_t depth, std::int64_t first,
            std::int64_t last);

  std::int64_t columns() const { return columns_; }
  std::int64_t padded_columns() const {
    return unit_ == ProductUnit::kTiles ? strips_.count() * TileStrips::kWidth : panels_ * width_;
  }
  std::int64_t panels() const { return panels_; }
  std::int64_t width() const { return width_; }
  const T* panel(std::int64_t p) const { return buffer_.data() + p * max_depth_ * width_; }
  ProductUnit unit() const { return unit_; }
  const TileStrips& strips() const { return strips_; }

  static std::int64_t padded(std::int64_t columns);
  static std::int64_t width_of(std::int64_t columns, ProductUnit unit);
  static std::int64_t bytes(std::int64_t max_depth, std::int64_t columns);

 private:
  ProductUnit unit_ = ProductUnit::kVectors;
  Buffer<T> buffer_;
  TileStrips strips_;
  std::int64_t max_depth_ = 0, columns_ = 0, panels_ = 0, width_ = 0;
};

/// The left factor of a product, [rows, depth], in blocks of the rows that the inner loop takes at
/// once: block b holds rows from b * kRows as [depth][kRows], or is a strip of tiles. Worth its
/// while where the numbers of a row lie far apart, and in tiles, which are made of rows that are
/// not packed again for each call of multiply.
template <class T>
class PackedRows {
 public:
  PackedRows(std::int64_t max_depth, std::int64_t rows, ProductUnit unit = best_unit<T>());

  /// Takes blocks [first, last) of a matrix of `depth` <= max_depth columns. Blocks do not touch
  /// each other's memory.
  void pack(StridedMatrix<T> source, std::int64_t depth, std::int64_t first, std::int64_t last);

  const TileStrips& strips() const { return strips_; }
  std::int64_t blocks() const { return (rows_ + block_rows_ - 1) / block_rows_; }
  std::int64_t block_rows() const { return block_rows_; }
  /// Returns the numbers from block to block.
  std::int64_t block_stride() const { return max_depth_ * block_rows_; }
  const T* block(std::int64_t b) const { return buffer_.data() + b * block_stride(); }

 private:
  ProductUnit unit_;
  Buffer<T> buffer_;
  TileStrips strips_;
  std::int64_t max_depth_, rows_, block_rows_;
};

/// c[i, j] = Σ_k a(i, k) b[k, j], plus c[i, j] where it accumulates, for `rows` rows and the
/// columns of panels [first, last). Single-threaded: callers cut the work, and results do not
/// depend on the cut.
template <class T>
void multiply(StridedMatrix<T> a, std::int64_t rows, std::int64_t depth, const PackedMatrix<T>& b,
              std::int64_t first, std::int64_t last, ProductTarget<T> c);

/// The same with `rows` rows of a left factor that is packed for the same unit, from the first row
/// of a block on.
template <class T>
void multiply(const PackedRows<T>& a, std::int64_t first_block, std::int64_t rows,
              std::int64_t depth, const PackedMatrix<T>& b, std::int64_t first, std::int64_t last,
              ProductTarget<T> c);

/// Returns the size of equal parts of `size`, but for the last one, none above `most`; 0 for 0.
inline std::int64_t part_size(std::int64_t size, std::int64_t most) {
  const std::int64_t parts = std::max<std::int64_t>(1, (size + most - 1) / most);
  return (size + parts - 1) / parts;
}

/// The depth up to which a product is one sum in registers; a deeper one is cut in equal parts. So
/// much of a panel and of a few rows stays in a second-level cache.
inline constexpr std::int64_t kDepthAtOnce = 640;

/// The number of rows that the inner loop takes at once divides this.
inline constexpr std::int64_t kRowGrain = 96;

}  // namespace prefopt::kernels::cpu
