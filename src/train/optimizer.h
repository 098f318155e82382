// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/optim/adamw.h>

#include <optional>
#include <vector>

#include "prefopt/model/policy.h"
#include "prefopt/train/trainer.h"

namespace prefopt::detail {

/// AdamW over the parameters that require a gradient. Weight decay acts on matrices and not on
/// vectors: norm weights and biases have no scale to shrink.
class Optimizer {
 public:
  Optimizer(const std::vector<NamedParameter>& parameters, const OptimizerOptions& options);

  bool empty() const { return parameters_.empty(); }
  void zero_grad();
  /// 2-norm over all gradients, summed in float64.
  double grad_norm() const;
  /// Scales the gradients, whose norm is `norm`, down to `max_norm`.
  void clip(double norm, double max_norm);
  void step(double learning_rate);

 private:
  std::vector<at::Tensor> parameters_;
  std::optional<torch::optim::AdamW> adamw_;  ///< empty without parameters
};

}  // namespace prefopt::detail
