// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace prefopt::kernels::cpu {

/// A matrix in blocks as GGUF files have them: each is `values` numbers of a row in `bytes` bytes.
/// Kernels decode a slice at a time, for as long as they need it.
struct BlockMatrix {
  const std::uint8_t* data = nullptr;
  std::int64_t columns = 0;  ///< a multiple of `values`
  std::int64_t values = 0, bytes = 0;
  /// Decodes blocks that follow one another.
  void (*decode)(const std::uint8_t* blocks, std::int64_t count, float* values) = nullptr;
  /// The place in memory of each row; null: in order.
  const std::int64_t* places = nullptr;

  std::int64_t row_bytes() const { return columns / values * bytes; }
};

/// A part of a matrix of blocks. Columns begin and end with a block.
struct BlockSlice {
  std::int64_t first_row, rows;
  std::int64_t first_column, columns;
};

/// Decodes a slice to out [rows, columns], on LibTorch's threads.
void decode_slice(const BlockMatrix& matrix, const BlockSlice& slice, float* out);

/// Decodes whole rows to out [rows, columns], on this thread.
void decode_rows(const BlockMatrix& matrix, std::int64_t first, std::int64_t rows, float* out);

/// Decodes a whole row to out [columns].
void decode_row(const BlockMatrix& matrix, std::int64_t row, float* out);

}  // namespace prefopt::kernels::cpu
