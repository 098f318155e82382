// SPDX-License-Identifier: Apache-2.0
#pragma once

// Weights that stay in a GGUF file's blocks, as tensors: float32 by their dtype and shape, but
// without numbers in memory. The functions here and the kernels of a decoder's layers and head
// compute with them; an operator of LibTorch that would read the numbers throws.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "kernels/cpu/block_matrix.h"

namespace prefopt::kernels {

/// A weight's blocks, and what keeps them in memory.
struct StoredBlocks {
  std::string_view encoding;  ///< ggml's name
  cpu::BlockMatrix matrix;    ///< whose `places` are those below
  std::int64_t rows = 0;
  std::vector<std::int64_t> places = {};
  at::Tensor bytes = {};  ///< of a mapped file
};

/// Returns a tensor [rows, columns] of the blocks.
at::Tensor make_block_tensor(StoredBlocks blocks);

/// Returns the blocks of such a tensor, null for any other one.
const StoredBlocks* blocks_of(const at::Tensor& tensor);

/// Throws ConfigError, led by `name`, for a weight in blocks, which cannot be trained.
void check_trainable(const at::Tensor& weight, std::string_view name);

/// Returns rows [begin, begin + count) of a matrix, in blocks or not.
at::Tensor narrow_rows(const at::Tensor& matrix, std::int64_t begin, std::int64_t count);

/// Returns decoded rows, [ids, columns], of a matrix in blocks.
at::Tensor rows_at(const StoredBlocks& blocks, const at::Tensor& ids);

/// Returns the matrix with its numbers in memory, decoded if it is in blocks.
at::Tensor with_numbers(const at::Tensor& matrix);

/// Returns x Wᵀ, differentiable in x, and in a weight that is not in blocks. Throws DtypeError for
/// blocks and x of another dtype than float32.
at::Tensor product(const at::Tensor& x, const at::Tensor& weight);
/// Returns the gradient of that with respect to x, dy W, without a graph of blocks.
at::Tensor product_gradient(const at::Tensor& dy, const at::Tensor& weight);

}  // namespace prefopt::kernels
