// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "prefopt/dist/ranks.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/trainer.h"
#include "train/rank_optimizer.h"
#include "train/state.h"

namespace prefopt::detail {

/// From gradients to the next policy: clipping, AdamW, the moving reference; no update where loss
/// or gradient are not finite.
class Updater {
 public:
  Updater(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference,
          const TrainerOptions& options, std::shared_ptr<Ranks> ranks);

  /// Returns the learning rate of the next step. Throws ConfigError for a schedule without a
  /// length.
  double next_learning_rate() const;
  /// Takes memory for gradients and zeroes them. Throws ConfigError if nothing is trained,
  /// OutOfMemoryError.
  void begin_step();
  /// Returns all parameters that are trained, the value model's last.
  std::vector<RankOptimizer::Trained> trained();
  /// Returns the 2-norms of this rank's gradients: the policy's and, with a value model, its.
  std::vector<double> norms() const;
  /// Takes the norms of all ranks: each has all gradients, or together they do.
  void join_norms(const std::vector<std::vector<double>>& of_ranks);
  double grad_norm() const { return grad_norm_; }

  enum class Outcome { kUpdated, kCounted, kSkipped, kFailed };
  /// Updates policy and reference with the gradients, or only counts the step where `loss` or
  /// `grad_norm` is not finite; kFailed: the third such step in a row.
  Outcome update(double loss, double grad_norm);
  /// Counts a step whose rows teach nothing: weights and means stay as they are.
  Outcome count_step();
  /// Throws the NonFiniteError of an update that failed.
  [[noreturn]] void fail(double loss, double grad_norm) const;
  /// Drops the gradients of a step without an update.
  void drop_gradients();

  std::int64_t steps_done() const { return steps_done_; }
  const RankOptimizer& optimizer() const { return optimizer_; }
  RankOptimizer& optimizer() { return optimizer_; }
  /// Returns the value model's optimizer; null without a value model.
  RankOptimizer* value_optimizer() { return value_optimizer_ ? &*value_optimizer_ : nullptr; }
  double value_grad_norm() const { return value_grad_norm_; }
  /// Visits the counts of steps; the optimizer's state is visited apart, as it was first saved.
  void visit_steps(StateVisitor& visitor);
  void visit_skipped(StateVisitor& visitor);

 private:
  void reserve_state(bool trains_policy, std::int64_t number);

  std::shared_ptr<Policy> policy_;
  std::shared_ptr<Reference> reference_;
  OptimizerOptions options_;
  std::int64_t total_steps_;
  std::shared_ptr<Ranks> ranks_;
  RankOptimizer optimizer_;
  OptimizerOptions value_options_;
  std::optional<RankOptimizer> value_optimizer_;
  std::int64_t value_pretrain_steps_;
  double grad_norm_ = 0;
  double value_grad_norm_ = 0;
  std::int64_t steps_done_ = 0;
  std::int64_t skipped_in_a_row_ = 0;
};

}  // namespace prefopt::detail
