// SPDX-License-Identifier: Apache-2.0
#include "prefopt/train/trainer.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <exception>
#include <limits>
#include <utility>

#include "dist/gathering_ranks.h"
#include "prefopt/error.h"
#include "train/step_failures.h"
#include "train/step_news.h"
#include "train/trainer_impl.h"
#include "train/whole_step.h"

namespace prefopt {

using detail::StepMetrics;
using detail::StepPlan;
using detail::Updater;

// The step, in order of use.

Metrics Trainer::step(const std::vector<TokenRow>& rows) {
  Impl& my = *impl_;
  StepMetrics metrics;
  metrics.set("learning_rate", my.updater.next_learning_rate());
  StepPlan plan = my.plan_step(rows);  // micro-batches of this rank, totals over the step
  my.report_failures(plan, [&] {
    my.backward(plan, metrics);  // for each part: inputs, loss, backward, metrics; sums over ranks
  });
  return my.update(plan, metrics);  // clip, AdamW, reference
}

StepPlan Trainer::Impl::plan_step(const std::vector<TokenRow>& rows) const {
  check_rows(rows);
  return loss->plan_step(rows, updater.steps_done());
}

void Trainer::Impl::backward(StepPlan& plan, StepMetrics& metrics) {
  const at::AutoGradMode grad_mode(true);
  gradients.begin_step(detail::most_parts(plan, *ranks));
  const auto trouble = trouble_of(fmt::format("step {}", plan.step + 1), plan.rows, [&] {
    updater.begin_step();  // gradients are zero
    loss->backward(plan, gradients, metrics);
  });
  if (trouble && ranks->size() == 1) std::rethrow_exception(trouble);
  trouble ? gradients.give_up() : gradients.finish();
  detail::StepNews own{.trouble = trouble};
  if (!trouble) {
    own.present = gradients.present();
    own.norms = updater.norms();
  }
  share_news(own, metrics);
  finish_metrics(plan.counts, /*trains=*/true, metrics);
  if (ranks->size() > 1) metrics.set("ranks/imbalance", plan.imbalance);
}

/// Tells all ranks what this one has, and takes theirs.
void Trainer::Impl::share_news(const detail::StepNews& own, StepMetrics& metrics) {
  if (ranks->size() == 1) return updater.join_norms({own.norms});
  std::vector<std::string> present;
  std::vector<std::vector<double>> norms;
  for (const detail::StepNews& news : detail::exchange_news(*ranks, own, metrics)) {
    present.push_back(news.present);
    norms.push_back(news.norms);
  }
  gradients.keep_present(present);
  updater.join_norms(norms);
}

void Trainer::Impl::finish_metrics(const detail::StepCounts& counts, bool trains,
                                   StepMetrics& metrics) const {
  loss->add_lengths(counts, metrics);
  const std::int64_t tokens = trains ? loss->tokens_taken(counts) : 0;
  metrics.set("num_tokens", static_cast<double>(tokens_seen + tokens));
}

Metrics Trainer::Impl::update(const StepPlan& plan, StepMetrics& metrics) {
  metrics.set("grad_norm", updater.grad_norm());
  if (updater.value_optimizer() != nullptr) {
    metrics.set("value/grad_norm", updater.value_grad_norm());
  }
  const Metrics finished = metrics.finish();
  step_counts = metrics.counts();
  const double loss_value = metric(finished, "loss");
  const double grad_norm = metric(finished, "grad_norm");
  const Updater::Outcome outcome =
      plan.shares.empty() ? updater.count_step() : updater.update(loss_value, grad_norm);
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
  std::vector<StepPlan> plans = my.loss->plan_evaluation(rows);
  const auto where = fmt::format("evaluation after step {}", my.updater.steps_done());
  const auto trouble = my.trouble_of(where, rows, [&] {
    for (StepPlan& plan : plans) my.loss->evaluate(plan, metrics);
  });
  if (my.ranks->size() > 1) {
    detail::exchange_news(*my.ranks, {.trouble = trouble}, metrics);
  } else if (trouble) {
    std::rethrow_exception(trouble);
  }
  my.finish_metrics(detail::count(rows), /*trains=*/false, metrics);
  return metrics.finish();
}

Metrics Trainer::accumulate_gradients(const std::vector<TokenRow>& rows) {
  Impl& my = *impl_;
  if (my.updater.optimizer().is_sharded()) {
    throw ConfigError(
        "trainer: expected sharding none for the gradients of a check, got slices of them");
  }
  StepPlan plan = my.plan_step(rows);
  StepMetrics metrics;
  my.backward(plan, metrics);
  metrics.set("grad_norm", my.updater.grad_norm());
  return metrics.finish();
}

void Trainer::restart_optimizer() {
  impl_->updater.optimizer().restart();
  if (auto* const of_values = impl_->updater.value_optimizer()) of_values->restart();
}

// Failures.

/// Returns what `work` throws, or null. Names the step where memory is short.
template <class Work>
std::exception_ptr Trainer::Impl::trouble_of(const std::string& where,
                                             const std::vector<TokenRow>& rows, Work&& work) const {
  try {
    detail::with_memory(work, [&](const std::string& why) {
      detail::throw_no_memory_for_rows(where, rows, options, why);
    });
  } catch (const detail::TroubleElsewhere&) {
    return nullptr;  // the other rank tells
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

/// Reports the step where sampling meets logits that are not finite.
template <class Work>
void Trainer::Impl::report_failures(const StepPlan& plan, Work&& work) {
  try {
    work();
  } catch (const NonFiniteError&) {
    constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
    report_non_finite(plan, kUnknown, kUnknown, {});
    throw;
  }
}

void Trainer::Impl::report_non_finite(const StepPlan& plan, double loss_value, double grad_norm,
                                      const Metrics& metrics) {
  const auto tell = [&] {
    if (!options.on_non_finite || ranks->rank() > 0) return;
    NonFiniteStep report = detail::describe_non_finite(*policy, *loss, plan.rows, options);
    report.step = plan.step + 1;
    report.loss = loss_value;
    report.grad_norm = grad_norm;
    report.metrics = metrics;
    options.on_non_finite(report);
  };
  // The others wait and give their slices.
  detail::slices_weights(*ranks) ? ranks->together(tell) : tell();
}

}  // namespace prefopt
