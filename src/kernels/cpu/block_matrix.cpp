// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/block_matrix.h"

#include "core/parallel.h"

namespace prefopt::kernels::cpu {
namespace {

void decode_columns(const BlockMatrix& matrix, std::int64_t row, std::int64_t first_column,
                    std::int64_t columns, float* out) {
  const std::int64_t place = matrix.places == nullptr ? row : matrix.places[row];
  const std::uint8_t* blocks =
      matrix.data + place * matrix.row_bytes() + first_column / matrix.values * matrix.bytes;
  matrix.decode(blocks, columns / matrix.values, out);
}

}  // namespace

void decode_slice(const BlockMatrix& matrix, const BlockSlice& slice, float* out) {
  constexpr std::int64_t kGrain = 4096;  // numbers, so that a part is worth a thread
  const std::int64_t grain = slice.columns >= kGrain ? 1 : kGrain / (slice.columns + 1) + 1;
  parallel_for(0, slice.rows, grain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      decode_columns(matrix, slice.first_row + i, slice.first_column, slice.columns,
                     out + i * slice.columns);
    }
  });
}

void decode_rows(const BlockMatrix& matrix, std::int64_t first, std::int64_t rows, float* out) {
  if (matrix.places == nullptr) {
    matrix.decode(matrix.data + first * matrix.row_bytes(), rows * matrix.columns / matrix.values,
                  out);
    return;
  }
  for (std::int64_t i = 0; i < rows; ++i) decode_row(matrix, first + i, out + i * matrix.columns);
}

void decode_row(const BlockMatrix& matrix, std::int64_t row, float* out) {
  decode_columns(matrix, row, 0, matrix.columns, out);
}

}  // namespace prefopt::kernels::cpu
