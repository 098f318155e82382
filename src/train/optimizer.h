// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/model/policy.h"
#include "prefopt/train/trainer.h"
#include "train/state.h"

namespace prefopt::detail {

/// AdamW (1711.05101) over the parameters that require a gradient, in one pass over memory. Weight
/// decay acts on matrices and not on vectors: norm weights and biases have no scale to shrink.
class Optimizer {
 public:
  Optimizer(const std::vector<NamedParameter>& parameters, const OptimizerOptions& options);

  bool empty() const;
  void zero_grad();
  /// 2-norm over all gradients, summed in float64.
  double grad_norm() const;
  /// Takes memory for the state of the parameters that have a gradient, so that `step` needs no
  /// more than a few MiB for what it computes with. Throws std::bad_alloc, and
  /// c10::OutOfMemoryError of a GPU, with nothing changed.
  void reserve_state();
  /// Takes the gradients times `factor`. A parameter without a gradient stays as it is.
  void step(double learning_rate, double factor = 1);
  /// All that steps change besides the parameters; the draws of narrow state follow from it.
  void visit_state(StateVisitor& visitor);

 private:
  struct Group {
    double weight_decay = 0;
    std::vector<std::string> names;
    std::vector<at::Tensor> parameters, means, squares, steps;
    std::vector<at::ScalarType> dtypes;  ///< of means and squares
    std::vector<bool> has_state;         ///< whether means and squares hold numbers yet
  };

  /// Memory for a parameter's means and squares, where there is none yet.
  static void reserve_state(Group& group, std::size_t index);
  /// A parameter's means and squares, zero, where there are none yet; whether there were none. They
  /// are made when they are first needed, so that a run starts sooner.
  static bool make_state(Group& group, std::size_t index);

  /// The divisor of a fused step is float32, too coarse for float64 gradients.
  static void scale_gradients(Group& group, double factor);
  void step_group(Group& group, double learning_rate, const at::Tensor& divisor);
  void step_narrow(Group& group, std::size_t index, double learning_rate,
                   const at::Tensor& divisor);
  void update(const Group& group, at::TensorList parameters, at::TensorList gradients,
              at::TensorList means, at::TensorList squares, at::TensorList steps,
              double learning_rate, const at::Tensor& divisor) const;

  OptimizerOptions options_;
  std::array<Group, 2> groups_;  // decayed, plain
  std::int64_t steps_done_ = 0;
};

}  // namespace prefopt::detail
