// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/scalar_tensor.h>
#include <fmt/format.h>

#include <utility>

#include "policy/logit_rules.h"
#include "prefopt/error.h"
#include "prefopt/losses/pair_fields.h"
#include "prefopt/policy/reward_policy.h"
#include "train/loss_metrics.h"
#include "train/router_term.h"
#include "train/step_inputs.h"
#include "train/step_loss.h"
#include "train/whole_step.h"

namespace prefopt::detail {
namespace {

class PairStepLoss final : public StepLoss {
 public:
  PairStepLoss(const StepParts& parts, Loss loss)
      : parts_(parts),
        loss_(std::move(loss)),
        needs_(loss_.requirements()),
        inputs_(parts_.policy, parts_.reference, needs_, parts_.options),
        router_(*parts_.policy, parts_.ranks) {}

  std::string name() const override { return loss_.info().name; }
  void check() const override;
  void check_rows(const std::vector<TokenRow>& rows) const override;
  StepPlan plan_step(const std::vector<TokenRow>& rows, std::int64_t step) const override {
    return planner().plan_step(rows, step);
  }
  std::vector<StepPlan> plan_evaluation(const std::vector<TokenRow>& rows) const override {
    return planner().plan_evaluation(rows);
  }
  void backward(StepPlan& plan, GradientSum& gradients, StepMetrics& metrics) override;
  void evaluate(StepPlan& plan, StepMetrics& metrics) override;
  void add_lengths(const StepCounts& counts, StepMetrics& metrics) const override {
    detail::add_lengths(needs_, counts, metrics);
  }
  std::int64_t tokens_taken(const StepCounts& counts) const override {
    return detail::tokens_taken(needs_, counts);
  }
  void take_step() override { running_ = next_running_; }
  PairLogps measure_logps(const std::vector<TokenRow>& rows) const override {
    return inputs_.measure_logps(rows);
  }
  LossState state() const override;
  void set_state(const LossState& state) override;

 private:
  Planner planner() const {
    return {needs_, parts_.options, !parts_.policy->packs(), *parts_.ranks};
  }
  void check_sampling() const;
  LossOutput loss_of(PairLogps& logps, const StepPlan& plan, const StepCounts& counts,
                     StepMetrics& metrics);
  bool is_cut(const StepPlan& plan) const;
  bool sees_whole_step(const StepPlan& plan) const { return needs_.whole_step && is_cut(plan); }
  PairLogps measure_whole(StepPlan& plan, StepMetrics& metrics);
  void backward_whole(StepPlan& plan, GradientSum& gradients, StepMetrics& metrics);
  LossOutput loss_of_whole(PairLogps& whole, const StepPlan& plan, StepMetrics& metrics);
  void evaluate_loss(StepPlan& plan, StepMetrics& metrics);

  StepParts parts_;
  Loss loss_;
  LossRequirements needs_;
  StepInputs inputs_;
  RouterTerm router_;
  RunningMean<at::Tensor> running_;
  RunningMean<at::Tensor> next_running_;  ///< the running mean if the step is taken
};

// The step.

void PairStepLoss::backward(StepPlan& plan, GradientSum& gradients, StepMetrics& metrics) {
  next_running_ = running_;
  if (sees_whole_step(plan)) return backward_whole(plan, gradients, metrics);
  if (is_cut(plan)) router_.begin_step([&] { return inputs_.count_routes(plan.parts); });
  for (Part& part : plan.parts) {
    PairLogps logps = inputs_.measure(part, plan, metrics);
    if (!is_cut(plan)) router_.begin_step([&] { return part.routes; });
    const LossOutput out = loss_of(logps, plan, part.counts, metrics);
    check_gradient(out.loss, name());
    gradients.backward(router_.added_to(out.loss, part.routes, plan.share, metrics),
                       &part == &plan.parts.back());
    part.release();
  }
}

LossOutput PairStepLoss::loss_of(PairLogps& logps, const StepPlan& plan, const StepCounts& counts,
                                 StepMetrics& metrics) {
  logps.totals = plan.totals;
  logps.running = running_;
  logps.running.is_frozen = !plan.trains;
  LossOutput out = loss_.forward(logps);
  if (!out.loss.defined() || out.loss.numel() != 1) {
    throw ShapeError(
        fmt::format("{}: expected a loss of one number, got {}", name(),
                    out.loss.defined() ? fmt::format("{}", out.loss.numel()) : "none"));
  }
  if (needs_.running_mean || sees_whole_step(plan)) next_running_ = out.running;
  add_loss_metrics(logps, out, needs_, counts, plan.share, metrics);
  return out;
}

bool PairStepLoss::is_cut(const StepPlan& plan) const {
  return plan.shares.size() > 1 || parts_.ranks->size() > 1;
}

/// Returns the routers' choices in the last pass over the rows of each part.
RouterLoad routes_of(const StepPlan& plan) {
  RouterLoad load;
  for (const Part& part : plan.parts) load.add(part.routes);
  return load;
}

/// Returns the inputs of the whole step, measured without a graph.
PairLogps PairStepLoss::measure_whole(StepPlan& plan, StepMetrics& metrics) {
  const at::NoGradGuard no_grad;
  return gather_inputs(plan, needs_, *parts_.ranks, parts_.policy->device(), [&] {
    std::vector<PairLogps> measured;
    for (Part& part : plan.parts) {
      measured.push_back(inputs_.measure(part, plan, metrics));
      if (!plan.trains) part.release();
    }
    return measured;
  });
}

/// Computes the loss of the whole step, which all ranks have and the first one counts.
LossOutput PairStepLoss::loss_of_whole(PairLogps& whole, const StepPlan& plan,
                                       StepMetrics& metrics) {
  StepMetrics uncounted;
  const bool counts = parts_.ranks->rank() == 0;
  return loss_of(whole, plan, plan.counts, counts ? metrics : uncounted);
}

/// For losses that see the whole step: its log-probs without a graph first, then each part again,
/// with its share of the gradient.
void PairStepLoss::backward_whole(StepPlan& plan, GradientSum& gradients, StepMetrics& metrics) {
  PairLogps whole = measure_whole(plan, metrics);
  router_.begin_step([&] { return routes_of(plan); });
  for (const auto& field : kPairFields<at::Tensor>) {
    at::Tensor& value = whole.*field.value;
    if (field.gradient != nullptr && value.defined()) value.requires_grad_();
  }
  const LossOutput out = loss_of_whole(whole, plan, metrics);
  check_gradient(out.loss, name());
  out.loss.backward();
  for (Part& part : plan.parts) {
    const PairLogps again = inputs_.measure_differentiable(part);
    at::Tensor sum;
    for (const auto& field : kPairFields<at::Tensor>) {
      const at::Tensor& value = again.*field.value;
      const at::Tensor& leaf = whole.*field.value;
      if (field.gradient == nullptr || !value.defined() || !leaf.defined() ||
          !leaf.grad().defined()) {
        continue;
      }
      const auto each = field.per_sample() ? needs_.samples_per_prompt : 1;
      const auto addend = (leaf.grad().narrow(0, part.place * each, value.size(0)) * value).sum();
      sum = sum.defined() ? sum + addend : addend;
    }
    gradients.backward(router_.added_to(sum, part.routes, plan.share, metrics),
                       &part == &plan.parts.back());
  }
}

void PairStepLoss::evaluate(StepPlan& plan, StepMetrics& metrics) {
  if (!router_.is_on()) return evaluate_loss(plan, metrics);
  router_.begin_step([&] {
    evaluate_loss(plan, metrics);
    return routes_of(plan);
  });
  for (const Part& part : plan.parts) router_.added_to({}, part.routes, plan.share, metrics);
}

void PairStepLoss::evaluate_loss(StepPlan& plan, StepMetrics& metrics) {
  if (sees_whole_step(plan)) {
    PairLogps whole = measure_whole(plan, metrics);
    loss_of_whole(whole, plan, metrics);
    return;
  }
  for (Part& part : plan.parts) {
    PairLogps logps = inputs_.measure(part, plan, metrics);
    loss_of(logps, plan, part.counts, metrics);
    part.release();
  }
}

// Checks.

void PairStepLoss::check_rows(const std::vector<TokenRow>& rows) const {
  if (needs_.has(Input::kl_logps) && rows.size() < 2) {
    throw ShapeError(
        fmt::format("{}: expected at least 2 rows a step, got 1; its KL is estimated on the "
                    "completions of other rows",
                    name()));
  }
}

void PairStepLoss::check() const {
  const std::string name = this->name();
  const auto& reference = parts_.reference;
  if (needs_.running_mean && !needs_.whole_step) {
    throw ConfigError(
        fmt::format("{}: expected whole_step in the requirements of a loss with running_mean, got "
                    "false; the mean would be of the last micro-batch alone",
                    name));
  }
  const bool has_rewards = dynamic_cast<const RewardPolicy*>(parts_.policy.get()) != nullptr;
  if (needs_.of_rewards != has_rewards) {
    throw ConfigError(fmt::format(
        "{}: expected {}, got {}", name,
        needs_.of_rewards ? "a reward model (RewardPolicy)" : "a policy with log-probs",
        has_rewards ? "a reward model; the loss reward_bt trains one" : "a policy with log-probs"));
  }
  if (needs_.of_rewards) expect_no_router_loss(name, *parts_.policy, nullptr);
  if (needs_.reference() && !reference) {
    throw ConfigError(
        fmt::format("{}: expected a reference, got null; make_frozen_reference("
                    "policy->frozen_copy()) makes one",
                    name));
  }
  if (needs_.has(Input::chosen_seq_kl) && reference->policy() == nullptr) {
    throw ConfigError(fmt::format(
        "{}: expected a reference with a model behind it, got one without; its loss needs the "
        "reference's whole distribution",
        name));
  }
  const bool compares_prompts = needs_.has(Input::kl_logps) || needs_.has(Input::labels) ||
                                needs_.sample_source != SampleSource::kNone;
  if (compares_prompts && reference && !reference->is_normalized()) {
    throw ConfigError(
        fmt::format("{}: expected a reference with the log-probs of a distribution, got a weighted "
                    "sum of several; its loss needs more than differences within a prompt",
                    name));
  }
  if (needs_.sample_source != SampleSource::kNone) check_sampling();
}

void PairStepLoss::check_sampling() const {
  const std::string name = this->name();
  const SamplingOptions& sampling = checked(parts_.options.sampling, "sampling");
  if (needs_.sample_source == SampleSource::kPolicy) {
    check_own_distribution(sampling, name, "; its gradient is an expectation under the policy");
  }
  if (needs_.samples_per_prompt < 1) {
    throw ConfigError(fmt::format("{}: expected at least one fresh sample a prompt, got {}", name,
                                  needs_.samples_per_prompt));
  }
  if (needs_.sample_source == SampleSource::kReference &&
      (!parts_.reference || parts_.reference->policy() == nullptr)) {
    throw ConfigError(
        fmt::format("{}: expected a reference that can be sampled, got one without a "
                    "model behind it",
                    name));
  }
}

LossState PairStepLoss::state() const {
  if (running_.count == 0) return {};
  return {running_.mean.item<double>(), running_.count};
}

void PairStepLoss::set_state(const LossState& state) {
  running_ = {};
  if (state.count == 0) return;
  const auto options = at::TensorOptions(at::kDouble).device(parts_.policy->device());
  running_ = {at::scalar_tensor(state.mean, options), state.count};
}

}  // namespace

std::unique_ptr<StepLoss> make_pair_step_loss(const StepParts& parts, Loss loss) {
  return std::make_unique<PairStepLoss>(parts, std::move(loss));
}

void check_gradient(const at::Tensor& loss, const std::string& name) {
  if (loss.requires_grad()) return;
  throw ConfigError(
      fmt::format("{}: expected a loss that depends on the policy's log-probs, got one without a "
                  "gradient",
                  name));
}

}  // namespace prefopt::detail
