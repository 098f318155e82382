// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "prefopt/losses/loss.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/reward_policy.h"
#include "prefopt/policy/sequence_logps.h"
#include "prefopt/train/trainer.h"
#include "train/metrics.h"
#include "train/step_plan.h"

namespace prefopt::detail {

/// The inputs of a loss, provided from policy, reference, fresh samples and columns of the rows.
class StepInputs {
 public:
  StepInputs(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference,
             const LossRequirements& needs, const TrainerOptions& options)
      : policy_(std::move(policy)),
        reward_policy_(dynamic_cast<RewardPolicy*>(policy_.get())),
        reference_(std::move(reference)),
        needs_(needs),
        sampling_(options.sampling),
        records_routes_(router_loss_of(*policy_).coefficient > 0),
        head_budget_bytes_(options.head_budget_bytes) {}

  /// Returns all inputs that the loss needs for a part, with a graph to the policy unless grad mode
  /// is off, and adds the metrics of its tokens. Samples and the reference's token log-probs stay
  /// in the part.
  PairLogps measure(Part& part, const StepPlan& plan, StepMetrics& metrics) const;
  /// Recomputes only the differentiable inputs of a measured part, to build the graph for backward.
  PairLogps measure_differentiable(Part& part) const;
  /// Returns the choices of routers for the rows of all parts, without a graph.
  RouterLoad count_routes(std::vector<Part>& parts) const;
  /// Returns log-probs of policy and reference, without samples.
  PairLogps measure_logps(const std::vector<TokenRow>& rows) const;

 private:
  /// Rewards in place of log-probs.
  PairLogps rewards_of(const std::vector<TokenRow>& rows) const;
  SequenceLogps policy_logps(const TokenBatch& batch, const ByProducts& by_products = {}) const;
  /// Returns those of a part's rows, and keeps the choices of routers for them in it. `batch` has
  /// the rows.
  SequenceLogps logps_of_rows(Part& part, const TokenBatch& batch,
                              const ByProducts& by_products = {}) const;
  TokenBatch batch_of(const std::vector<TokenRow>& rows) const;
  /// Returns fresh completions of the part's prompts.
  TokenBatch draw_samples(const Part& part, std::int64_t step) const;
  /// Returns the completions of the rows' partners, under these rows' prompts.
  TokenBatch mismatched(const Part& part, const StepPlan& plan) const;
  /// Sums of log(pi/pi_ref) of each token within the loss's limits.
  at::Tensor limited_logratios(const at::Tensor& reference_token_logps,
                               const SequenceLogps& current) const;

  /// Throws ConfigError for an input that no provider has set.
  void check_provided(const PairLogps& logps) const;

  // Providers: each sets the inputs of one kind that the loss needs.
  void set_policy_logps(PairLogps& logps, Part& part, const TokenBatch& batch,
                        const SequenceLogps& current) const;
  void set_prompt_logps(PairLogps& logps, const std::vector<TokenRow>& rows) const;
  void set_log_sum_p_squared(PairLogps& logps, std::int64_t rows,
                             const SequenceLogps& current) const;
  void set_reference_logps(PairLogps& logps, const Part& part, const TokenBatch& batch,
                           const SequenceLogps& current) const;
  void set_kl_logps(PairLogps& logps, const Part& part, const StepPlan& plan) const;
  void set_columns(PairLogps& logps, const std::vector<TokenRow>& rows) const;
  static void set_groups(PairLogps& logps, const Part& part);
  void set_samples(PairLogps& logps, Part& part, std::int64_t step, StepMetrics& metrics) const;

  std::shared_ptr<Policy> policy_;
  RewardPolicy* reward_policy_;  ///< null: the policy has log-probs
  std::shared_ptr<Reference> reference_;
  LossRequirements needs_;
  SamplingOptions sampling_;
  bool records_routes_;  ///< in the passes over rows
  std::int64_t head_budget_bytes_;
};

}  // namespace prefopt::detail
