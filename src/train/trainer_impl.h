// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/dist/ranks.h"
#include "prefopt/train/trainer.h"
#include "train/gradient_sum.h"
#include "train/metrics.h"
#include "train/state.h"
#include "train/step_loss.h"
#include "train/step_news.h"
#include "train/step_plan.h"
#include "train/updater.h"

namespace prefopt {

struct Trainer::Impl {
  Impl(detail::StepParts parts, std::unique_ptr<detail::StepLoss> loss_);

  detail::StepPlan plan_step(const std::vector<TokenRow>& rows) const;
  void backward(detail::StepPlan& plan, detail::StepMetrics& metrics);
  void share_news(const detail::StepNews& own, detail::StepMetrics& metrics);
  void finish_metrics(const detail::StepCounts& counts, bool trains,
                      detail::StepMetrics& metrics) const;
  Metrics update(const detail::StepPlan& plan, detail::StepMetrics& metrics);

  void check() const;
  void check_rows(const std::vector<TokenRow>& rows) const;
  template <class Work>
  std::exception_ptr trouble_of(const std::string& where, const std::vector<TokenRow>& rows,
                                Work&& work) const;
  template <class Work>
  void report_failures(const detail::StepPlan& plan, Work&& work);
  void report_non_finite(const detail::StepPlan& plan, double loss_value, double grad_norm,
                         const Metrics& metrics);
  void visit_state(StateVisitor& visitor);

  std::shared_ptr<Policy> policy;
  std::shared_ptr<Reference> reference;
  TrainerOptions options;
  std::shared_ptr<Ranks> ranks;
  std::unique_ptr<detail::StepLoss> loss;
  detail::Updater updater;
  detail::GradientSum gradients;
  std::int64_t tokens_seen = 0;
  Metrics step_counts;
};

}  // namespace prefopt
