// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/cpu/rows.h"

// A decoder layer's arithmetic apart from products and attention, forward and backward, in float
// and double. It runs on LibTorch's threads, and their number changes no bit of a result.
namespace prefopt::kernels::cpu {

/// Rows of `groups` parts of `width` numbers, one after the other, each with its own norm: a
/// hidden state is one part, the queries of a token are a part a head.
struct NormShape {
  std::int64_t rows;
  std::int64_t groups = 1;
  std::int64_t width;
};

/// Of each part: rstd = 1 / sqrt(mean(x²) + eps), y = w x rstd.
///
/// With a residual r, x is x + r before all that, and `sum` is where it is left. y and sum may be x
/// or r, but not each other.
template <class T>
struct RmsNorm {
  NormShape shape;
  Rows<const T> x;
  Rows<const T> residual = {};  ///< null: none
  Rows<T> sum = {};             ///< only with a residual
  const T* weight;              ///< w [width]
  double eps;
  Rows<T> y;
  T* rstd = nullptr;  ///< [rows * groups]; null: not wanted
};
template <class T>
void rms_norm(const RmsNorm<T>& norm);

/// With g = w dy and x̂ = x rstd: dx = rstd (g − x̂ mean(g x̂)), added to what is there if
/// `accumulate`, and dw += Σ dy x̂ over all parts. dx may be dy or x.
template <class T>
struct RmsNormBackward {
  NormShape shape;
  Rows<const T> dy;
  Rows<const T> x;  ///< what was normalized: with a residual the sum
  const T* rstd;
  const T* weight;
  Rows<T> dx;
  bool accumulate = false;
  T* dw = nullptr;  ///< [width]; null: not wanted
};
template <class T>
void rms_norm_backward(const RmsNormBackward<T>& norm);

/// The function f of a gate: f(g) = g σ(k) with σ(k) = 1 / (1 + e^−k), where k is g for silu and
/// 2 sqrt(2 / π) (g + 0.044715 g³) for the tanh form of gelu.
enum class Gate { kSilu, kGeluTanh };

/// h = f(g) u. h may be g or u.
template <class T>
struct Swiglu {
  std::int64_t rows, width;
  Rows<const T> g, u;
  Rows<T> h;
  Gate gate = Gate::kSilu;
};
template <class T>
void swiglu(const Swiglu<T>& work);

/// With σ = σ(k): dg = dh u σ (1 + g k' (1 − σ)), du = dh g σ, and h = g σ u once more. Each result
/// may overwrite an input.
template <class T>
struct SwigluBackward {
  std::int64_t rows, width;
  Rows<const T> dh, g, u;
  Rows<T> dg, du;
  Rows<T> h = {};  ///< null: not wanted
  Gate gate = Gate::kSilu;
};
template <class T>
void swiglu_backward(const SwigluBackward<T>& work);

/// Rotary positions (RoPE) of heads, in place: with D = rotated / 2, and c, s the cosine and sine
/// [rows, D] of a row,
///   x_i ← c_i x_i − s_i x_{i+D},  x_{i+D} ← c_i x_{i+D} + s_i x_i  for i < D.
/// The rest of a head stays as it is. Queries and keys that lie side by side are rotated in one
/// call. Backward is the transposed map: the rotation by minus the angle.
template <class T>
struct Rotary {
  std::int64_t rows, heads, head_dim;
  Rows<T> x;
  Rows<const T> cos, sin;
  std::int64_t rotated = 0;  ///< 0: head_dim
};
template <class T>
void apply_rope_(const Rotary<T>& rotary);
template <class T>
void apply_rope_backward_(const Rotary<T>& rotary);

}  // namespace prefopt::kernels::cpu
