// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <utility>

#include "policy/logit_rules.h"
#include "prefopt/error.h"
#include "prefopt/policy/reward_policy.h"
#include "prefopt/policy/sequence_kl.h"
#include "prefopt/policy/sequence_logps.h"
#include "train/draw_seed.h"
#include "train/loss_metrics.h"
#include "train/router_term.h"
#include "train/step_loss.h"

namespace prefopt::detail {
namespace {

class TokenStepLoss final : public StepLoss {
 public:
  TokenStepLoss(const StepParts& parts, TokenLoss loss)
      : parts_(parts), loss_(std::move(loss)), needs_(loss_.needs()) {
    rows_.inputs = Input::chosen_logps | when(needs_.rewards, Input::labels);
  }

  std::string name() const override { return loss_.name(); }
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
    detail::add_lengths(completion_needs(), counts, metrics);
  }
  std::int64_t tokens_taken(const StepCounts& counts) const override {
    return detail::tokens_taken(completion_needs(), counts);
  }
  PairLogps measure_logps(const std::vector<TokenRow>& rows) const override;

 private:
  static LossRequirements completion_needs() { return {.inputs = Input::chosen_logps}; }
  Planner planner() const {
    return {rows_, parts_.options, !parts_.policy->packs(), *parts_.ranks};
  }
  /// Calls `take` with the loss of each of this rank's parts of a step, and of the samples drawn
  /// for it, and with whether it is the last.
  template <class Take>
  void for_each_loss(const StepPlan& plan, StepMetrics& metrics, const Take& take) const;
  std::vector<TokenRow> draw_own(const StepPlan& plan) const;
  at::Tensor loss_of(const std::vector<TokenRow>& rows, const ObjectiveTotals& totals, bool are_own,
                     StepMetrics& metrics) const;
  TokenRows inputs_of(const std::vector<TokenRow>& rows, const SequenceLogps& current,
                      const TokenBatch& batch) const;
  TokenBatch batch_of(const std::vector<TokenRow>& rows) const {
    return make_pair_batch(rows, /*with_rejected=*/false).to(parts_.policy->device());
  }

  StepParts parts_;
  TokenLoss loss_;
  TokenLossNeeds needs_;
  LossRequirements rows_;  ///< of a step's rows, for its plan
};

/// A number of each row, at each of its tokens.
at::Tensor at_tokens(const std::vector<double>& of_rows, const SequenceLogps& current) {
  return at::tensor(of_rows, at::kDouble)
      .to(current.row_to_sequence.device())
      .index_select(0, current.row_to_sequence);
}

/// Places of steps among those of all completions; `count` becomes their number.
at::Tensor places_of_steps(const std::vector<TokenRow>& rows, std::int64_t& count,
                           const at::Tensor& like) {
  std::vector<double> places;
  for (const TokenRow& row : rows) {
    std::int64_t last = -1;
    for (const std::int64_t step : row.rollout.turns) {
      if (step != last) ++count;
      last = step;
      places.push_back(static_cast<double>(count - 1));
    }
  }
  return at::tensor(places, at::kDouble).to(like.device());
}

// Checks.

void TokenStepLoss::check() const {
  const bool has_values = static_cast<bool>(parts_.options.value_model);
  if (dynamic_cast<const RewardPolicy*>(parts_.policy.get()) != nullptr) {
    throw ConfigError(fmt::format(
        "{}: expected a policy with log-probs, got a reward model; the loss reward_bt trains one",
        name()));
  }
  expect_no_router_loss(name(), *parts_.policy, parts_.options.value_model.get());
  if (parts_.options.temperature != 1) {
    throw ConfigError(
        fmt::format("{}: expected temperature 1, as its rows were drawn at none, got {}", name(),
                    parts_.options.temperature));
  }
  if (needs_.ref_logps && !parts_.reference) {
    throw ConfigError(
        fmt::format("{}: expected a reference, got null; make_frozen_reference("
                    "policy->frozen_copy()) makes one",
                    name()));
  }
  if (needs_.exact_kls && parts_.reference->policy() == nullptr) {
    throw ConfigError(fmt::format(
        "{}: expected a reference with a model behind it, got one without; the exact KL needs its "
        "whole distribution",
        name()));
  }
  if (needs_.ref_logps && !parts_.reference->is_normalized()) {
    throw ConfigError(fmt::format(
        "{}: expected a reference with the log-probs of a distribution, got a weighted sum of "
        "several",
        name()));
  }
  if (needs_.values != has_values) {
    throw ConfigError(fmt::format("{}: expected {}, got {}", name(),
                                  needs_.values ? "a value model" : "no value model",
                                  has_values ? "one" : "null"));
  }
  if (parts_.options.value_pretrain_steps > 0 && !needs_.values) {
    throw ConfigError(fmt::format("{}: expected value_pretrain_steps 0 without values, got {}",
                                  name(), parts_.options.value_pretrain_steps));
  }
  if (parts_.options.imitation_coefficient > 0) {
    throw ConfigError(
        fmt::format("{}: expected no rows that are imitated next to its own, got an "
                    "imitation_coefficient of {}",
                    name(), parts_.options.imitation_coefficient));
  }
  if (needs_.own_samples > 0) {
    const RanksOptions& ranks = parts_.ranks->options();
    if (parts_.ranks->size() > 1 &&
        (ranks.order == SumOrder::kTree || ranks.sharding >= Sharding::kGradients)) {
      throw ConfigError(fmt::format(
          "{}: expected distributed.order fast and sharding none or optimizer with own samples "
          "over several ranks, got {}",
          name(),
          ranks.order == SumOrder::kTree           ? "order tree"
          : ranks.sharding == Sharding::kGradients ? "sharding gradients"
                                                   : "sharding weights"));
    }
    check_own_distribution(checked(parts_.options.sampling, "sampling"), name(),
                           "; its own samples are of the policy");
  }
}

void TokenStepLoss::check_rows(const std::vector<TokenRow>& rows) const {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const TokenRow& row = rows[i];
    const std::int64_t tokens = counted_tokens(row.chosen, row.chosen_mask);
    if (tokens == 0) {
      throw ShapeError(
          fmt::format("{}: expected a token that counts in row {}, got none", name(), i));
    }
    if (!row.chosen_weights.empty()) {
      throw ShapeError(fmt::format(
          "{}: expected rows without weights of tokens, got some in row {}", name(), i));
    }
    if (needs_.rewards && !std::isfinite(row.columns[Column::kLabel])) {
      throw DataError(fmt::format("{}: expected a label in row {}, got none", name(), i));
    }
    if (needs_.steps && std::ssize(row.rollout.turns) != tokens) {
      throw ShapeError(
          fmt::format("{}: expected steps of the {} tokens that count in row {}, got {}", name(),
                      tokens, i, row.rollout.turns.size()));
    }
  }
}

// The step.

void TokenStepLoss::backward(StepPlan& plan, GradientSum& gradients, StepMetrics& metrics) {
  for_each_loss(plan, metrics, [&](const at::Tensor& loss, bool is_last) {
    check_gradient(loss, name());
    gradients.backward(loss, is_last);
  });
}

void TokenStepLoss::evaluate(StepPlan& plan, StepMetrics& metrics) {
  for_each_loss(plan, metrics, [](const at::Tensor&, bool) {});
}

template <class Take>
void TokenStepLoss::for_each_loss(const StepPlan& plan, StepMetrics& metrics,
                                  const Take& take) const {
  const ObjectiveTotals totals{.tokens = plan.totals.chosen_tokens,
                               .completions = plan.totals.pairs};
  // All ranks draw the same samples, and each takes some of them.
  std::vector<std::vector<TokenRow>> own;
  ObjectiveTotals of_own;
  if (needs_.own_samples > 0) {
    const std::vector<TokenRow> all = draw_own(plan);
    const StepCounts counts = count(all);
    of_own = {.tokens = static_cast<double>(counts.chosen),
              .completions = static_cast<double>(counts.rows)};
    const Ranks& ranks = *parts_.ranks;
    const auto cut = cut_micro_batches(all, limits_for(parts_.options, all.size(), ranks));
    for (std::size_t i = static_cast<std::size_t>(ranks.rank()); i < cut.size();
         i += static_cast<std::size_t>(ranks.size())) {
      own.push_back(cut[i]);
    }
  }
  std::size_t left = plan.parts.size() + own.size();
  for (const Part& part : plan.parts) {
    take(loss_of(part.rows, totals, /*are_own=*/false, metrics), --left == 0);
  }
  for (const auto& rows : own) {
    take(loss_of(rows, of_own, /*are_own=*/true, metrics), --left == 0);
  }
}

/// Completions of the policy for that share of the step's prompts, at least one, at equal
/// distances.
std::vector<TokenRow> TokenStepLoss::draw_own(const StepPlan& plan) const {
  const at::NoGradGuard no_grad;
  const auto rows = std::ssize(plan.rows);
  const auto count =
      std::max<std::int64_t>(1, std::llround(needs_.own_samples * static_cast<double>(rows)));
  std::vector<std::vector<std::int64_t>> prompts;
  for (std::int64_t i = 0; i < count; ++i) {
    prompts.push_back(plan.rows[static_cast<std::size_t>(i * rows / count)].prompt);
  }
  SamplingOptions sampling = parts_.options.sampling;
  sampling.seed = seed_of_step(sampling.seed, plan.step);
  // Keys and values of all prompts at once could take any amount of memory.
  constexpr std::ptrdiff_t kAtOnce = 16;
  std::vector<std::vector<std::int64_t>> completions;
  for (std::ptrdiff_t i = 0; i < std::ssize(prompts); i += kAtOnce) {
    const std::ptrdiff_t end = std::min(i + kAtOnce, std::ssize(prompts));
    auto some = sample(*parts_.policy, {prompts.begin() + i, prompts.begin() + end}, sampling);
    std::move(some.begin(), some.end(), std::back_inserter(completions));
    sampling.first_index += end - i;
  }
  std::vector<TokenRow> own;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    own.push_back({.prompt = prompts[i], .chosen = std::move(completions[i]), .rejected = {}});
  }
  return own;
}

TokenRows TokenStepLoss::inputs_of(const std::vector<TokenRow>& rows, const SequenceLogps& current,
                                   const TokenBatch& batch) const {
  TokenRows in;
  in.logps = current.token_logps;
  in.log_normalizers = current.by_products.logsumexp;
  in.completions = current.row_to_sequence;
  in.lens = current.lens.index_select(0, current.row_to_sequence);
  in.completion_count = std::ssize(rows);
  if (needs_.ref_logps) {
    const at::NoGradGuard no_grad;
    in.ref_logps = parts_.reference->token_logps(batch);
  }
  if (needs_.values) in.values = parts_.options.value_model->token_values(batch);
  if (needs_.exact_kls) {
    in.exact_kls = token_kl(*parts_.policy, *parts_.reference->policy(), batch,
                            {.budget_bytes = parts_.options.head_budget_bytes});
  }
  if (needs_.rewards) {
    std::vector<double> rewards;
    for (const TokenRow& row : rows) rewards.push_back(row.columns[Column::kLabel]);
    in.rewards = at_tokens(rewards, current);
  }
  if (needs_.steps) in.steps = places_of_steps(rows, in.step_count, current.token_logps);
  return in;
}

at::Tensor TokenStepLoss::loss_of(const std::vector<TokenRow>& rows, const ObjectiveTotals& totals,
                                  bool are_own, StepMetrics& metrics) const {
  const TokenBatch batch = batch_of(rows);
  const SequenceLogps current =
      sequence_logps(*parts_.policy, batch,
                     {.by_products = {.entropy = true, .is_top1 = true},
                      .reduction = {},
                      .budget_bytes = parts_.options.head_budget_bytes,
                      .differentiable = {.logsumexp = needs_.log_normalizers}});
  TokenRows in = inputs_of(rows, current, batch);
  in.are_own = are_own;
  in.totals = totals;
  const TokenLossOutput out = loss_.forward(in);
  metrics.add_total("loss", out.loss.detach());
  for (const auto& term : out.terms) metrics.add_total("loss/" + term.name, term.value);
  if (are_own) return out.loss;
  for (const auto& statistic : out.statistics) {
    metrics.add_total(statistic.name, statistic.sum / totals.tokens);
  }
  const auto tokens = static_cast<double>(current.token_logps.size(0));
  metrics.add_mean("entropy", current.by_products.entropy.sum(at::kDouble), tokens);
  metrics.add_mean("mean_token_accuracy", current.by_products.is_top1.sum(), tokens);
  metrics.add_mean("logps/chosen", current.logps.detach().sum(),
                   static_cast<double>(std::ssize(rows)));
  return out.loss;
}

PairLogps TokenStepLoss::measure_logps(const std::vector<TokenRow>& rows) const {
  PairLogps logps;
  const TokenBatch batch = batch_of(rows);
  logps.chosen_logps =
      sequence_logps(
          *parts_.policy, batch,
          {.by_products = {}, .reduction = {}, .budget_bytes = parts_.options.head_budget_bytes})
          .logps;
  if (needs_.ref_logps) logps.ref_chosen_logps = parts_.reference->sequence_logps(batch);
  return logps;
}

}  // namespace

std::unique_ptr<StepLoss> make_token_step_loss(const StepParts& parts, TokenLoss loss) {
  return std::make_unique<TokenStepLoss>(parts, std::move(loss));
}

}  // namespace prefopt::detail
