// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "prefopt/train/trainer.h"
#include "train/loss_metrics.h"
#include "train/metrics.h"
#include "train/state.h"
#include "train/step_inputs.h"
#include "train/step_plan.h"
#include "train/updater.h"

namespace prefopt {

struct Trainer::Impl {
  Impl(std::shared_ptr<Policy> policy_, std::shared_ptr<Reference> reference_, Loss loss_,
       TrainerOptions options_);

  detail::StepPlan plan_step(const std::vector<TokenRow>& rows) const;
  detail::Planner planner() const;
  void backward(detail::StepPlan& plan, detail::StepMetrics& metrics);
  void backward_whole(detail::StepPlan& plan, detail::StepMetrics& metrics);
  LossOutput evaluate(PairLogps& logps, const detail::StepPlan& plan,
                      const detail::StepCounts& counts, detail::StepMetrics& metrics);
  PairLogps measure_whole(detail::StepPlan& plan, detail::StepMetrics& metrics);
  bool sees_whole_step(const detail::StepPlan& plan) const;
  void finish_metrics(const detail::StepCounts& counts, bool trains,
                      detail::StepMetrics& metrics) const;
  Metrics update(const detail::StepPlan& plan, detail::StepMetrics& metrics);

  void check_rows(const std::vector<TokenRow>& rows) const;
  void check_gradient(const LossOutput& out) const;
  void check_needs() const;
  void check_sampling() const;
  template <class Work>
  void report_failures(const detail::StepPlan& plan, Work&& work);
  void report_non_finite(const detail::StepPlan& plan, double loss_value, double grad_norm,
                         const Metrics& metrics);
  void visit_state(StateVisitor& visitor);
  LossState loss_state() const;
  void set_loss_state(const LossState& state);

  std::shared_ptr<Policy> policy;
  std::shared_ptr<Reference> reference;
  Loss loss;
  LossRequirements needs;
  TrainerOptions options;
  std::shared_ptr<Ranks> ranks;
  detail::StepInputs inputs;
  detail::Updater updater;
  std::int64_t tokens_seen = 0;
  Metrics step_counts;
  RunningMean<at::Tensor> running;
  RunningMean<at::Tensor> next_running;  ///< the running mean if the step is taken
};

}  // namespace prefopt
