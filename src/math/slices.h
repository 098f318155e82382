// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

// Numbers cut into a slice for each rank, the rows of a matrix [ranks, each]. The last rows end in
// zeros, or have nothing else.
namespace prefopt::detail {

/// Returns `each`.
inline std::int64_t slice_size(std::int64_t numbers, int ranks) {
  return (numbers + ranks - 1) / ranks;
}

/// Writes numbers [n] into rows of zeros.
void cut(const at::Tensor& numbers, const at::Tensor& rows);

/// Writes rows into numbers [n].
void join(const at::Tensor& rows, const at::Tensor& numbers);

/// Returns the numbers of a rank, a view; of size 0 where nothing is left for it.
at::Tensor slice_of(const at::Tensor& numbers, int rank, int ranks);

}  // namespace prefopt::detail
