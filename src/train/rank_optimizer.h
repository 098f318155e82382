// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "prefopt/dist/ranks.h"
#include "train/optimizer.h"

namespace prefopt::detail {

/// The optimizer of a rank. Without sharding it has all numbers of all parameters; by sharding
/// (ZeRO, 1910.02054) those of a slice of each, and ranks send each other the weights after a step.
/// The state has the same names and shapes either way, so that a run may resume with another number
/// of ranks or another sharding.
///
/// `zero_grad`, `grad_norm` and `empty` concern one rank; all of them call the others.
class RankOptimizer {
 public:
  /// Throws ConfigError for an optimizer, or parameters, that cannot be cut into slices.
  RankOptimizer(const std::vector<NamedParameter>& parameters, const OptimizerOptions& options,
                std::shared_ptr<Ranks> ranks);

  /// A parameter as backward passes know it, and as this rank steps it: the same, or a slice.
  struct Trained {
    Optimizer::Parameter* whole;
    Optimizer::Parameter* own;
  };
  /// Returns all of them, in the order in which the parameters were given.
  std::vector<Trained> trained();
  bool is_sharded() const { return slices_.has_value(); }
  bool empty() const { return whole_.empty(); }
  bool has_masters() const { return whole_.has_masters(); }
  void zero_grad();
  /// Returns the 2-norm of the gradients of what this rank steps.
  double grad_norm() const { return stepper().grad_norm(); }
  bool lacks_state() const { return stepper().lacks_state(); }
  void reserve_state() { stepper().reserve_state(); }
  void step(double learning_rate, double factor);
  void restart() { stepper().restart(); }
  void visit_state(StateVisitor& visitor);
  /// Returns the masters of all numbers; of slices on the first rank alone, which writes them.
  std::vector<Optimizer::Master> masters();
  /// Returns the bytes of the optimizer's state on this rank.
  std::int64_t state_bytes();

 private:
  Optimizer& stepper() { return slices_ ? *slices_ : whole_; }
  const Optimizer& stepper() const { return slices_ ? *slices_ : whole_; }
  void make_slices(const OptimizerOptions& options);
  void follow_parameters();
  void share_weights();
  void share(const std::vector<Trained>& some);

  std::shared_ptr<Ranks> ranks_;
  Optimizer whole_;
  std::optional<Optimizer> slices_;
};

}  // namespace prefopt::detail
