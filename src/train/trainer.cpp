// SPDX-License-Identifier: Apache-2.0
#include "prefopt/train/trainer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <fmt/format.h>

#include <limits>
#include <utility>

#include "prefopt/error.h"
#include "prefopt/losses/pair_fields.h"
#include "train/step_failures.h"
#include "train/trainer_impl.h"

namespace prefopt {

using detail::Part;
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

void Trainer::Impl::backward(StepPlan& plan, StepMetrics& metrics) {
  const at::AutoGradMode grad_mode(true);
  next_running = running;
  if (sees_whole_step(plan)) {
    backward_whole(plan, metrics);
  } else {
    for (Part& part : plan.parts) {
      PairLogps logps = inputs.measure(part, plan, metrics);
      const LossOutput out = evaluate(logps, plan, part.counts, metrics);
      check_gradient(out);
      out.loss.backward();
      part.release();
    }
  }
  finish_metrics(plan.counts, /*trains=*/true, metrics);
}

StepPlan Trainer::Impl::plan_step(const std::vector<TokenRow>& rows) const {
  check_rows(rows);
  return planner().plan_step(rows, updater.steps_done());
}

detail::Planner Trainer::Impl::planner() const {
  return {needs, options, !policy->packs(), *ranks};
}

LossOutput Trainer::Impl::evaluate(PairLogps& logps, const StepPlan& plan,
                                   const detail::StepCounts& counts, StepMetrics& metrics) {
  logps.totals = plan.totals;
  logps.running = running;
  logps.running.is_frozen = !plan.trains;
  LossOutput out = loss.forward(logps);
  if (!out.loss.defined() || out.loss.numel() != 1) {
    throw ShapeError(
        fmt::format("{}: expected a loss of one number, got {}", loss.info().name,
                    out.loss.defined() ? fmt::format("{}", out.loss.numel()) : "none"));
  }
  if (needs.running_mean || sees_whole_step(plan)) next_running = out.running;
  detail::add_loss_metrics(logps, out, needs, counts, plan.share, metrics);
  return out;
}

bool Trainer::Impl::sees_whole_step(const StepPlan& plan) const {
  return needs.whole_step && (plan.parts.size() > 1 || ranks->size() > 1);
}

/// Returns the inputs of the whole step, measured without a graph.
PairLogps Trainer::Impl::measure_whole(StepPlan& plan, StepMetrics& metrics) {
  const at::NoGradGuard no_grad;
  std::vector<PairLogps> measured;
  for (Part& part : plan.parts) {
    measured.push_back(inputs.measure(part, plan, metrics));
    if (!plan.trains) part.release();
  }
  PairLogps whole;
  whole.samples_per_prompt = measured.front().samples_per_prompt;
  for (const auto& field : kPairFields<at::Tensor>) {
    if (!field.needed(needs)) continue;
    std::vector<at::Tensor> values;
    for (const PairLogps& part : measured) values.push_back(part.*field.value);
    whole.*field.value = at::cat(values);
  }
  return whole;
}

/// For losses that see the whole step: its log-probs without a graph first, then each part again,
/// with its share of the gradient.
void Trainer::Impl::backward_whole(StepPlan& plan, StepMetrics& metrics) {
  PairLogps whole = measure_whole(plan, metrics);
  for (const auto& field : kPairFields<at::Tensor>) {
    at::Tensor& value = whole.*field.value;
    if (field.gradient != nullptr && value.defined()) value.requires_grad_();
  }
  const LossOutput out = evaluate(whole, plan, plan.counts, metrics);
  check_gradient(out);
  out.loss.backward();
  for (Part& part : plan.parts) {
    const PairLogps again = inputs.measure_differentiable(part);
    at::Tensor sum;
    for (const auto& field : kPairFields<at::Tensor>) {
      const at::Tensor& value = again.*field.value;
      const at::Tensor& leaf = whole.*field.value;
      if (field.gradient == nullptr || !value.defined() || !leaf.defined() ||
          !leaf.grad().defined()) {
        continue;
      }
      const auto each = field.per_sample() ? needs.samples_per_prompt : 1;
      const auto addend = (leaf.grad().narrow(0, part.place * each, value.size(0)) * value).sum();
      sum = sum.defined() ? sum + addend : addend;
    }
    sum.backward();
  }
}

void Trainer::Impl::finish_metrics(const detail::StepCounts& counts, bool trains,
                                   StepMetrics& metrics) const {
  detail::add_lengths(needs, counts, metrics);
  const std::int64_t tokens = trains ? detail::tokens_taken(needs, counts) : 0;
  metrics.set("num_tokens", static_cast<double>(tokens_seen + tokens));
}

Metrics Trainer::Impl::update(const StepPlan& plan, StepMetrics& metrics) {
  metrics.set("grad_norm", updater.sum_gradients());
  const Metrics finished = metrics.finish();
  step_counts = metrics.counts();
  const double loss_value = metric(finished, "loss");
  const double grad_norm = metric(finished, "grad_norm");
  const Updater::Outcome outcome = updater.update(loss_value, grad_norm);
  tokens_seen = static_cast<std::int64_t>(metric(finished, "num_tokens"));
  if (outcome == Updater::Outcome::kUpdated) {
    running = next_running;
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
        for (StepPlan& plan : my.planner().plan_evaluation(rows)) {
          if (my.sees_whole_step(plan)) {
            PairLogps whole = my.measure_whole(plan, metrics);
            my.evaluate(whole, plan, plan.counts, metrics);
            continue;
          }
          for (Part& part : plan.parts) {
            PairLogps logps = my.inputs.measure(part, plan, metrics);
            my.evaluate(logps, plan, part.counts, metrics);
            part.release();
          }
        }
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

void Trainer::restart_optimizer() { impl_->updater.optimizer().restart(); }

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
  NonFiniteStep report = detail::describe_non_finite(*policy, inputs, plan.rows, options);
  report.step = plan.step + 1;
  report.loss = loss_value;
  report.grad_norm = grad_norm;
  report.metrics = metrics;
  options.on_non_finite(report);
}

}  // namespace prefopt
