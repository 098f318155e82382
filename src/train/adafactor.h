// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace prefopt::detail {

/// Adafactor (1804.04235, algorithms 4 and 5, without momentum) on one weight. With g the gradient,
/// t the step from 1, β_t = 1 − t^−decay and means over the last two dimensions of a matrix [n, m]:
///   R_t = β_t R_{t−1} + (1 − β_t) mean_m(g² + ε1), C_t likewise with mean_n, V = R Cᵀ / mean(R)
///   V_t = β_t V_{t−1} + (1 − β_t) (g² + ε1)  for vectors
///   U = g / sqrt(V), Û = U / max(1, rms(U) / clip)
///   θ ← (1 − learning_rate · weight_decay) θ − α Û
/// with ε1 = 1e-30 and α = learning_rate, or learning_rate · max(1e-3, rms(θ)) by
/// `scale_parameter`. These are the formulas of transformers' Adafactor with relative_step=False;
/// torch.optim.Adafactor has scale_parameter, bounds the learning rate by 1/sqrt(t) and has ε1 in
/// another place.
struct AdafactorStep {
  at::Tensor values;    ///< [numel] dense, perhaps bfloat16 or float16; changed
  at::Tensor gradient;  ///< [numel]
  at::Tensor divisor;   ///< of the gradient; undefined: 1
  /// R [..., n] and C [..., m], or V [numel] alone; changed. Arithmetic is in their dtype.
  std::vector<at::Tensor> moments;
  double number = 1;  ///< t
  double learning_rate = 0, weight_decay = 0;
  double decay = 0.8, clip = 1;
  bool scale_parameter = false;
};

/// Writes wide numbers into a narrow tensor.
using RoundNumbers = std::function<void(const at::Tensor& wide, at::Tensor& narrow)>;

/// Takes the step, a chunk of rows at a time: beyond the weight itself it needs a few MiB. `round`
/// is called where the values are narrower than the moments.
void take_adafactor_step(const AdafactorStep& step, const RoundNumbers& round);

}  // namespace prefopt::detail
