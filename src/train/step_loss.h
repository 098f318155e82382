// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/dist/ranks.h"
#include "prefopt/losses/loss.h"
#include "prefopt/objectives/token_loss.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/trainer.h"
#include "train/gradient_sum.h"
#include "train/metrics.h"
#include "train/state.h"
#include "train/step_plan.h"

namespace prefopt::detail {

/// The loss of a step with everything that it is computed from: the part of a trainer between rows
/// and gradients.
class StepLoss {
 public:
  virtual ~StepLoss() = default;

  virtual std::string name() const = 0;
  /// Throws ConfigError where policy, reference or options do not fit.
  virtual void check() const = 0;
  /// Throws ShapeError or DataError for rows that the loss cannot take.
  virtual void check_rows(const std::vector<TokenRow>& rows) const = 0;

  /// Returns the micro-batches of a step and totals over it. No shares: there is nothing to learn
  /// from the rows.
  virtual StepPlan plan_step(const std::vector<TokenRow>& rows, std::int64_t step) const = 0;
  /// Returns plans that together hold all rows of an evaluation.
  virtual std::vector<StepPlan> plan_evaluation(const std::vector<TokenRow>& rows) const = 0;
  /// Runs the backward passes of this rank's parts through `gradients`, and adds metrics of the
  /// parts.
  virtual void backward(StepPlan& plan, GradientSum& gradients, StepMetrics& metrics) = 0;
  /// Adds metrics of the loss without gradients. Grad mode is off.
  virtual void evaluate(StepPlan& plan, StepMetrics& metrics) = 0;
  /// Adds metrics of rows that are counted, not measured.
  virtual void add_lengths(const StepCounts& counts, StepMetrics& metrics) const = 0;
  /// Returns the tokens that a forward pass over rows takes.
  virtual std::int64_t tokens_taken(const StepCounts& counts) const = 0;
  /// Called after the update of the step that `backward` was for.
  virtual void take_step() {}
  /// Returns log-probs of policy and reference, for the report of a step that failed.
  virtual PairLogps measure_logps(const std::vector<TokenRow>& rows) const = 0;

  /// The running mean of a loss that has one.
  virtual LossState state() const { return {}; }
  virtual void set_state(const LossState& /*state*/) {}
};

/// The parts of a trainer.
struct StepParts {
  std::shared_ptr<Policy> policy;
  std::shared_ptr<Reference> reference;  ///< may be null
  TrainerOptions options;
  std::shared_ptr<Ranks> ranks;
};

/// Returns a loss on pairs, labelled rows or rewards.
std::unique_ptr<StepLoss> make_pair_step_loss(const StepParts& parts, Loss loss);
/// Returns an objective on the tokens of rollouts.
std::unique_ptr<StepLoss> make_rollout_step_loss(const StepParts& parts, TokenObjective objective);
/// Returns a loss on the tokens of given rows.
std::unique_ptr<StepLoss> make_token_step_loss(const StepParts& parts, TokenLoss loss);

/// Throws ConfigError for a loss that the policy's log-probs have no part in.
void check_gradient(const at::Tensor& loss, const std::string& name);

}  // namespace prefopt::detail
