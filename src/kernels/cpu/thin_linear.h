// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <span>
#include <type_traits>
#include <variant>

#include "kernels/cpu/block_matrix.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"

// Linear layers on few rows, as decoding has them. linear.h puts weights in another order before it
// multiplies, which pays where many rows go past them. Here a weight is read once, where it lies,
// and a SIMD lane is a row of x: up to 1.5 times as fast for 16 rows, 1.1 for 64, and 0.9 for 1,600
// (bench_linear). A row's result depends neither on the other rows nor on the number of threads.
namespace prefopt::kernels::cpu {

/// A matrix without gaps; a low precision is widened, or blocks are decoded, a few rows at a time.
template <class T>
using WeightRows = std::conditional_t<
    std::is_same_v<T, float>,
    std::variant<const float*, const c10::BFloat16*, const c10::Half*, BlockMatrix>,
    std::variant<const T*>>;

/// y = x Wᵀ + b, or y += x Wᵀ + b.
template <class T>
struct ThinLinear {
  const PackedMatrix<T>* x;  ///< xᵀ [in, rows]
  std::int64_t in, out;
  WeightRows<T> weight;     ///< W [out, in]
  const T* bias = nullptr;  ///< b [out]; null: none
  Rows<T> y;
  bool accumulate = false;
};

/// xᵀ of x [rows, in].
template <class T>
PackedMatrix<T> pack_rows(Rows<const T> x, std::int64_t rows, std::int64_t in);

/// All at once, so that small ones share the threads.
template <class T>
void thin_linear(std::span<const ThinLinear<T>> products);

}  // namespace prefopt::kernels::cpu
