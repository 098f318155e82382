// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <span>
#include <type_traits>
#include <variant>

#include "kernels/cpu/block_matrix.h"
#include "kernels/cpu/rows.h"

// Linear layers on few rows, as decoding has them. linear.h puts weights in another order before it
// multiplies, which pays where many rows go past them. Here a SIMD lane is a number of a weight's
// row, so that floats are read where they lie and blocks are decoded as they follow one another.
//
// The lanes' sums are added in pairs of neighbours, whatever the number of rows: a row's result
// depends neither on the other rows nor on the number of threads, and a weight in blocks or in a
// low precision gives the bits of the same weight in float32.
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
  Rows<const T> x;  ///< [rows, in]
  std::int64_t rows, in, out;
  WeightRows<T> weight;     ///< W [out, in]
  const T* bias = nullptr;  ///< b [out]; null: none
  Rows<T> y;
  bool accumulate = false;
};

/// All at once, so that small ones share the threads.
template <class T>
void thin_linear(std::span<const ThinLinear<T>> products);

}  // namespace prefopt::kernels::cpu
