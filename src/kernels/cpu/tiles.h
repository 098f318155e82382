// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <vector>

#include "kernels/cpu/buffer.h"
#include "kernels/cpu/rows.h"

// Products of float32 matrices by the tile unit of a processor (AMX), which multiplies matrices of
// 16 rows of bfloat16 numbers and adds the products in float32.
//
// A float32 number is the sum of three bfloat16 numbers, of which each is rounded from what the
// ones before left. Six of the nine products of their parts make a float32 product: the other three
// are below 2^-25 of it, half of what rounding to float32 takes. A factor whose numbers are
// bfloat16 already has one part, and three products are enough for all of their digits.
namespace prefopt::kernels::cpu {

/// Returns whether products of float32 matrices go through tiles: on Linux, where the processor has
/// the unit, the system lends it, and PREFOPT_SIMD names no other instructions.
bool has_tiles();

/// Returns the parts that a number is split into: 3, or what at::Float32MatmulPrecision asks for,
/// as torch.set_float32_matmul_precision does: 3 for "highest", 2 for "high" (16 bits of a factor
/// are kept), 1 for "medium" (8 bits, as in a model in bfloat16).
int tile_parts();

/// A factor of a product, the left one's rows or the right one's columns, in strips of 32.
class TileStrips {
 public:
  enum class Side { kLeft, kRight };
  static constexpr std::int64_t kWidth = 32;

  TileStrips() = default;
  TileStrips(Side side, std::int64_t max_depth, std::int64_t size);

  /// Takes strips [first, last) of numbers source[i, k], where k < depth <= max_depth is what the
  /// product sums over. One of the strides is 1. Strips do not touch each other's memory.
  template <class Source>
  void pack(StridedMatrix<Source> source, std::int64_t depth, std::int64_t first,
            std::int64_t last);

  std::int64_t size() const { return size_; }
  std::int64_t count() const { return (size_ + kWidth - 1) / kWidth; }
  const std::uint16_t* strip(std::int64_t s) const { return buffer_.data() + s * strip_numbers_; }
  /// Returns how many parts of a strip's numbers are not all 0, at least 1.
  int parts(std::int64_t s) const { return parts_[static_cast<std::size_t>(s)]; }

  static std::int64_t bytes(std::int64_t max_depth, std::int64_t size);

 private:
  template <int kCount, class Source>
  void pack_parts(StridedMatrix<Source> source, std::int64_t depth, std::int64_t first,
                  std::int64_t last);

  Side side_{};
  Buffer<std::uint16_t> buffer_;
  std::vector<std::uint8_t> parts_;
  std::int64_t size_ = 0, strip_numbers_ = 0;
};

/// Strips [first, last) of a factor, and the depth from which on they are read, a multiple of 32.
struct TileFactor {
  const TileStrips& strips;
  std::int64_t first, last;
  std::int64_t begin = 0;
};

/// c[i, j] = Σ_k a(i, k) b(j, k), plus c[i, j] where it accumulates, over `depth` numbers, for
/// `rows` rows. c begins with the first row of a's first strip and with column 0 of b.
/// Single-threaded: results do not depend on how callers cut the work.
void multiply_tiles(TileFactor a, std::int64_t rows, TileFactor b, std::int64_t depth,
                    ProductTarget<float> c);

}  // namespace prefopt::kernels::cpu
