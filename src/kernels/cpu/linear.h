// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cpu/block_matrix.h"
#include "kernels/cpu/rows.h"

// The three products of a linear layer with weight W [out, in] on N rows, on LibTorch's threads,
// whose number changes no bit of a result. T is float or double. Next to float rows a weight may
// also be bfloat16, which is widened as it is read, or a BlockMatrix, which is decoded a slice at a
// time: the same bits as with the widened or decoded weight. With `accumulate` a product is added
// to what is there. Results may not overlap inputs.
namespace prefopt::kernels::cpu {

struct LinearSizes {
  std::int64_t rows, in, out;
};

template <class Weight>
using LinearWeight =
    std::conditional_t<std::is_same_v<Weight, BlockMatrix>, BlockMatrix, Rows<const Weight>>;

/// Y = X Wᵀ: y [N, out], x [N, in].
template <class T, class Weight = T>
struct LinearForward {
  LinearSizes sizes;
  Rows<const T> x;
  LinearWeight<Weight> weight;
  Rows<T> y;
  bool accumulate = false;
};
template <class T, class Weight>
void linear_forward(const LinearForward<T, Weight>& product);

/// dX = dY W: dx [N, in], dy [N, out].
template <class T, class Weight = T>
struct LinearInputGrad {
  LinearSizes sizes;
  Rows<const T> dy;
  LinearWeight<Weight> weight;
  Rows<T> dx;
  bool accumulate = false;
};
template <class T, class Weight>
void linear_input_grad(const LinearInputGrad<T, Weight>& product);

/// dW = dYᵀ X: dw [out, in], dy [N, out], x [N, in].
template <class T>
struct LinearWeightGrad {
  LinearSizes sizes;
  Rows<const T> dy;
  Rows<const T> x;
  Rows<T> dw;
  bool accumulate = false;
};
template <class T>
void linear_weight_grad(const LinearWeightGrad<T>& product);

}  // namespace prefopt::kernels::cpu
