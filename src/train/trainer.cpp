// SPDX-License-Identifier: Apache-2.0
#include "prefopt/train/trainer.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <limits>
#include <utility>

#include "prefopt/error.h"
#include "train/step_failures.h"
#include "train/trainer_impl.h"

namespace prefopt {

using detail::StepMetrics;
using detail::StepPlan;
using detail::Updater;

// The step, in order of use.

Metrics Trainer::step(const std::vector<TokenRow>& rows) {
  Impl& my = *impl_;
  StepMetrics metrics;
  metrics.set("learning_rate", my.updater.next_learning_rate());
  my.updater.begin_step();             // gradients are zero
  StepPlan plan = my.plan_step(rows);  // micro-batches, totals over the step and all ranks
  my.report_failures(plan, [&] {
    my.backward(plan, metrics);  // for each part: inputs, loss, backward, metrics
  });
  return my.update(plan, metrics);  // sum over ranks, clip, AdamW, reference
}

StepPlan Trainer::Impl::plan_step(const std::vector<TokenRow>& rows) const {
  check_rows(rows);
  return loss->plan_step(rows, updater.steps_done());
}

void Trainer::Impl::backward(StepPlan& plan, StepMetrics& metrics) {
  const at::AutoGradMode grad_mode(true);
  loss->backward(plan, metrics);
  finish_metrics(plan.counts, /*trains=*/true, metrics);
}

void Trainer::Impl::finish_metrics(const detail::StepCounts& counts, bool trains,
                                   StepMetrics& metrics) const {
  loss->add_lengths(counts, metrics);
  const std::int64_t tokens = trains ? loss->tokens_taken(counts) : 0;
  metrics.set("num_tokens", static_cast<double>(tokens_seen + tokens));
}

Metrics Trainer::Impl::update(const StepPlan& plan, StepMetrics& metrics) {
  metrics.set("grad_norm", updater.sum_gradients());
  if (updater.value_optimizer() != nullptr) {
    metrics.set("value/grad_norm", updater.value_grad_norm());
  }
  const Metrics finished = metrics.finish();
  step_counts = metrics.counts();
  const double loss_value = metric(finished, "loss");
  const double grad_norm = metric(finished, "grad_norm");
  const Updater::Outcome outcome =
      plan.parts.empty() ? updater.count_step() : updater.update(loss_value, grad_norm);
  tokens_seen = static_cast<std::int64_t>(metric(finished, "num_tokens"));
  if (outcome == Updater::Outcome::kCounted) return finished;
  if (outcome == Updater::Outcome::kUpdated) {
    loss->take_step();
    return finished;
  }
  metrics.set("skipped", 1);
  const Metrics skipped = metrics.finish();
  report_non_finite(plan, loss_value, grad_norm, skipped);
  updater.drop_gradients();
  if (outcome == Updater::Outcome::kFailed) updater.fail(loss_value, grad_norm);
  return skipped;
}

// Evaluations, and gradients for checks.

Metrics Trainer::evaluate(const std::vector<TokenRow>& rows) {
  Impl& my = *impl_;
  my.check_rows(rows);
  const at::AutoGradMode grad_mode(false);
  StepMetrics metrics;
  detail::with_memory(
      [&] {
        for (StepPlan& plan : my.loss->plan_evaluation(rows)) my.loss->evaluate(plan, metrics);
      },
      [&](const std::string& why) {
        detail::throw_no_memory_for_rows(
            fmt::format("evaluation after step {}", my.updater.steps_done()), rows, my.options,
            why);
      });
  my.finish_metrics(detail::count(rows), /*trains=*/false, metrics);
  return metrics.finish();
}

Metrics Trainer::accumulate_gradients(const std::vector<TokenRow>& rows) {
  Impl& my = *impl_;
  my.updater.begin_step();
  StepPlan plan = my.plan_step(rows);
  StepMetrics metrics;
  my.backward(plan, metrics);
  metrics.set("grad_norm", my.updater.sum_gradients());
  return metrics.finish();
}

void Trainer::restart_optimizer() {
  impl_->updater.optimizer().restart();
  if (auto* const of_values = impl_->updater.value_optimizer()) of_values->restart();
}

// Failures.

/// Names the step where memory is short, and reports it where sampling meets logits that are not
/// finite.
template <class Work>
void Trainer::Impl::report_failures(const StepPlan& plan, Work&& work) {
  try {
    detail::with_memory(work, [&](const std::string& why) {
      detail::throw_no_memory_for_rows(fmt::format("step {}", plan.step + 1), plan.rows, options,
                                       why);
    });
  } catch (const NonFiniteError&) {
    constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
    report_non_finite(plan, kUnknown, kUnknown, {});
    throw;
  }
}

void Trainer::Impl::report_non_finite(const StepPlan& plan, double loss_value, double grad_norm,
                                      const Metrics& metrics) {
  if (!options.on_non_finite) return;
  NonFiniteStep report = detail::describe_non_finite(*policy, *loss, plan.rows, options);
  report.step = plan.step + 1;
  report.loss = loss_value;
  report.grad_norm = grad_norm;
  report.metrics = metrics;
  options.on_non_finite(report);
}

}  // namespace prefopt
