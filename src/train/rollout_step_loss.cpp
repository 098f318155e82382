// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "math/upload.h"
#include "policy/token_range.h"
#include "prefopt/error.h"
#include "prefopt/policy/reward_policy.h"
#include "prefopt/policy/sequence_kl.h"
#include "prefopt/policy/sequence_logps.h"
#include "train/loss_metrics.h"
#include "train/router_term.h"
#include "train/step_loss.h"

namespace prefopt::detail {
namespace {

/// Rows are completions, whose log-probs are all that counts ask about.
LossRequirements completion_needs() { return {.inputs = Input::chosen_logps}; }

using Numbers = std::vector<double> RolloutColumns::*;

class RolloutStepLoss final : public StepLoss {
 public:
  RolloutStepLoss(const StepParts& parts, TokenObjective objective)
      : parts_(parts), objective_(std::move(objective)), needs_(objective_.needs()) {}

  std::string name() const override { return objective_.name(); }
  void check() const override;
  void check_rows(const std::vector<TokenRow>& rows) const override;
  StepPlan plan_step(const std::vector<TokenRow>& rows, std::int64_t step) const override;
  std::vector<StepPlan> plan_evaluation(const std::vector<TokenRow>& rows) const override;
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
  bool has_kl_loss() const { return objective_.options().kl.is_in_loss(); }
  bool teaches(const TokenRow& row) const;
  at::Tensor imitation_loss(const Part& part, const StepPlan& plan, StepMetrics& metrics) const;
  at::Tensor measure(Part& part, const StepPlan& plan, StepMetrics& metrics) const;
  std::vector<std::vector<TokenRow>> cut_whole_groups(const std::vector<TokenRow>& rows,
                                                      const TrainerOptions& options) const;
  SequenceLogps policy_logps(const TokenBatch& batch) const;
  ObjectiveOutput loss_of(Part& part, const StepPlan& plan, StepMetrics& metrics) const;

  StepParts parts_;
  TokenObjective objective_;
  ObjectiveNeeds needs_;
};

/// Returns whether a row is imitated, no rollout.
bool is_imitated(const TokenRow& row) { return row.rollout.advantages.empty(); }

/// Returns the column of all rows, token after token; undefined where the first row has none.
at::Tensor column_of(const std::vector<TokenRow>& rows, Numbers column, const at::Tensor& like) {
  std::vector<double> all;
  for (const TokenRow& row : rows) {
    const std::vector<double>& numbers = row.rollout.*column;
    all.insert(all.end(), numbers.begin(), numbers.end());
  }
  if (all.empty()) return {};
  return uploaded(at::tensor(all, at::kDouble), like.device());
}

/// Places of turns among those of all completions; `count` becomes their number.
at::Tensor turns_of(const std::vector<TokenRow>& rows, std::int64_t& count,
                    const at::Tensor& like) {
  std::vector<std::int64_t> places;
  for (const TokenRow& row : rows) {
    std::int64_t last = -1;
    const std::int64_t tokens = counted_tokens(row.chosen, row.chosen_mask);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const auto& turns = row.rollout.turns;
      const std::int64_t turn = turns.empty() ? 0 : turns[static_cast<std::size_t>(t)];
      if (turn != last) ++count;
      last = turn;
      places.push_back(count - 1);
    }
  }
  return uploaded(at::tensor(places, at::kLong), like.device());
}

// Checks.

void RolloutStepLoss::check() const {
  if (dynamic_cast<const RewardPolicy*>(parts_.policy.get()) != nullptr) {
    throw ConfigError(fmt::format(
        "{}: expected a policy with log-probs, got a reward model; the loss reward_bt trains one",
        name()));
  }
  expect_no_router_loss(name(), *parts_.policy, parts_.options.value_model.get());
  if (!(parts_.options.temperature > 0)) {
    throw ConfigError(fmt::format("{}: expected a temperature above 0, got {}", name(),
                                  parts_.options.temperature));
  }
  if (needs_.exact_kls && (!parts_.reference || parts_.reference->policy() == nullptr)) {
    throw ConfigError(fmt::format(
        "{}: expected a reference with a model behind it, got {}; the exact KL needs its whole "
        "distribution",
        name(), parts_.reference ? "one without" : "null"));
  }
  const bool trains_values = objective_.options().value_loss.coefficient > 0;
  if (trains_values != static_cast<bool>(parts_.options.value_model)) {
    throw ConfigError(fmt::format(
        "{}: expected {}, got {}", name(),
        trains_values ? "a value model for its value_loss" : "no value model without a value_loss",
        trains_values ? "null" : "one"));
  }
  if (parts_.options.value_pretrain_steps > 0 && !trains_values) {
    throw ConfigError(
        fmt::format("{}: expected value_pretrain_steps 0 without a value_loss, got {}", name(),
                    parts_.options.value_pretrain_steps));
  }
  if (has_kl_loss() && parts_.reference && !parts_.reference->is_normalized()) {
    throw ConfigError(
        fmt::format("{}: expected a reference with the log-probs of a distribution, got a weighted "
                    "sum of several",
                    name()));
  }
}

void RolloutStepLoss::check_rows(const std::vector<TokenRow>& given) const {
  std::vector<TokenRow> rows;
  for (std::size_t i = 0; i < given.size(); ++i) {
    if (counted_tokens(given[i].chosen, given[i].chosen_mask) > 0) continue;
    throw ShapeError(
        fmt::format("{}: expected a token that counts in row {}, got none", name(), i));
  }
  for (const TokenRow& row : given) {
    if (parts_.options.imitation_coefficient > 0 && is_imitated(row)) continue;
    rows.push_back(row);
  }
  if (rows.empty()) {
    throw ShapeError(fmt::format("{}: expected at least one rollout, got none", name()));
  }
  const bool trains_values = objective_.options().value_loss.coefficient > 0;
  struct Check {
    Numbers column;
    std::string_view name;
    bool is_needed;
  };
  const std::vector<Check> checks = {
      {&RolloutColumns::advantages, "advantages", true},
      {&RolloutColumns::old_logps, "old_logps", false},
      {&RolloutColumns::ref_logps, "ref_logps",
       has_kl_loss() && !needs_.exact_kls && !parts_.reference},
      {&RolloutColumns::sampler_logps, "sampler_logps", needs_.sampler_logps},
      {&RolloutColumns::old_values, "old_values", trains_values},
      {&RolloutColumns::returns, "returns", trains_values},
  };
  for (const Check& check : checks) {
    const bool are_there = !(rows.front().rollout.*check.column).empty();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::int64_t tokens = counted_tokens(rows[i].chosen, rows[i].chosen_mask);
      const auto count = std::ssize(rows[i].rollout.*check.column);
      if (count == tokens || (count == 0 && !are_there && !check.is_needed)) continue;
      throw ShapeError(fmt::format("{}: expected {} of the {} tokens that count in row {}, got {}",
                                   name(), check.name, tokens, i, count));
    }
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::int64_t tokens = counted_tokens(rows[i].chosen, rows[i].chosen_mask);
    const auto turns = std::ssize(rows[i].rollout.turns);
    const bool has_others = !rows[i].rejected.empty() || !rows[i].gold.empty();
    if (has_others || !rows[i].chosen_weights.empty()) {
      throw ShapeError(fmt::format(
          "{}: expected rows of one completion without weights of tokens, got others in row {}",
          name(), i));
    }
    if (turns != 0 && turns != tokens) {
      throw ShapeError(
          fmt::format("{}: expected turns of the {} tokens that count in row {}, got {}", name(),
                      tokens, i, turns));
    }
  }
}

// Plans.

bool RolloutStepLoss::teaches(const TokenRow& row) const {
  const auto& advantages = row.rollout.advantages;
  return !objective_.ignores_zero_advantages() ||
         std::any_of(advantages.begin(), advantages.end(), [](double a) { return a != 0; });
}

/// Returns rows cut so that completions of a group stay together, as their prompt is computed once
/// for all of them; a group that exceeds the limits by itself is cut.
std::vector<std::vector<TokenRow>> RolloutStepLoss::cut_whole_groups(
    const std::vector<TokenRow>& rows, const TrainerOptions& options) const {
  std::vector<std::int64_t> order;
  std::map<std::int64_t, std::vector<TokenRow>> groups;
  for (const TokenRow& row : rows) {
    auto& group = groups[row.rollout.group];
    if (group.empty()) order.push_back(row.rollout.group);
    group.push_back(row);
  }
  const auto tokens_in = [&](const std::vector<TokenRow>& group) {
    std::int64_t tokens = 0;
    for (const TokenRow& row : group) tokens += tokens_of(row);
    const std::int64_t shared = std::ssize(group.front().prompt) * (std::ssize(group) - 1);
    return parts_.policy->packs() ? tokens - shared : tokens;
  };
  const auto exceeds = [&](std::int64_t count, std::int64_t tokens) {
    return (options.micro_batch_size > 0 && count > options.micro_batch_size) ||
           (options.micro_batch_tokens > 0 && tokens > options.micro_batch_tokens);
  };
  std::vector<std::vector<TokenRow>> parts;
  std::int64_t tokens = 0;
  bool is_open = false;
  for (const std::int64_t number : order) {
    std::vector<TokenRow>& group = groups.at(number);
    const std::int64_t more = tokens_in(group);
    if (exceeds(std::ssize(group), more)) {
      for (auto& part : cut_micro_batches(group, options)) parts.push_back(std::move(part));
      is_open = false;
      continue;
    }
    if (!is_open || exceeds(std::ssize(parts.back()) + std::ssize(group), tokens + more)) {
      parts.emplace_back();
      tokens = 0;
      is_open = true;
    }
    tokens += more;
    for (TokenRow& row : group) parts.back().push_back(std::move(row));
  }
  return parts;
}

StepPlan RolloutStepLoss::plan_step(const std::vector<TokenRow>& given, std::int64_t step) const {
  std::vector<TokenRow> rows;
  std::vector<TokenRow> imitated;
  for (const TokenRow& row : given) (is_imitated(row) ? imitated : rows).push_back(row);
  StepPlan plan;
  plan.step = step;
  plan.rows = given;
  plan.counts = count(rows);
  const StepCounts others = count(imitated);
  for (const TokenRow& row : rows) {
    plan.group_tokens[row.rollout.group] +=
        static_cast<double>(counted_tokens(row.chosen, row.chosen_mask));
  }
  plan.rollouts = {.tokens = static_cast<double>(plan.counts.chosen),
                   .completions = static_cast<double>(plan.counts.rows),
                   .groups = static_cast<double>(plan.group_tokens.size())};
  plan.imitated_tokens = static_cast<double>(others.chosen);
  std::vector<TokenRow> taught;
  std::copy_if(rows.begin(), rows.end(), std::back_inserter(taught),
               [&](const TokenRow& row) { return teaches(row); });
  const TrainerOptions limits =
      limits_for(parts_.options, taught.size() + imitated.size(), *parts_.ranks);
  auto cut = cut_whole_groups(taught, limits);
  for (auto& some : cut_micro_batches(imitated, limits)) cut.push_back(std::move(some));
  // Their tokens are taken as well.
  plan.counts.prompt += others.prompt;
  plan.counts.all_chosen += others.all_chosen;
  std::int64_t place = 0;
  for (auto& some : cut) {
    Part part{.rows = std::move(some),
              .partners = {},
              .groups = {},
              .place = place,
              .number = place,
              .counts = {}};
    part.counts = count(part.rows);
    place += part.counts.rows;
    plan.parts.push_back(std::move(part));
  }
  deal_parts(plan, *parts_.ranks);
  return plan;
}

std::vector<StepPlan> RolloutStepLoss::plan_evaluation(const std::vector<TokenRow>& rows) const {
  std::vector<StepPlan> plans{plan_step(rows, kEvaluation)};
  plans.front().trains = false;
  return plans;
}

// The step.

void RolloutStepLoss::backward(StepPlan& plan, GradientSum& gradients, StepMetrics& metrics) {
  // Nothing to learn: the loss is that of all tokens, which is 0.
  if (plan.shares.empty()) metrics.add_total("loss", at::zeros({}, at::kDouble));
  for (Part& part : plan.parts) {
    const at::Tensor loss = measure(part, plan, metrics);
    check_gradient(loss, name());
    gradients.backward(loss, &part == &plan.parts.back());
  }
}

at::Tensor RolloutStepLoss::measure(Part& part, const StepPlan& plan, StepMetrics& metrics) const {
  return is_imitated(part.rows.front()) ? imitation_loss(part, plan, metrics)
                                        : loss_of(part, plan, metrics).loss;
}

at::Tensor RolloutStepLoss::imitation_loss(const Part& part, const StepPlan& plan,
                                           StepMetrics& metrics) const {
  const TokenBatch batch =
      make_pair_batch(part.rows, /*with_rejected=*/false).to(parts_.policy->device());
  // The data were drawn at no temperature.
  const SequenceLogps current = sequence_logps(
      *parts_.policy, batch,
      {.by_products = {}, .reduction = {}, .budget_bytes = parts_.options.head_budget_bytes});
  const at::Tensor loss =
      current.logps.sum() * (-parts_.options.imitation_coefficient / plan.imitated_tokens);
  metrics.add_total("loss", loss.detach());
  metrics.add_total("loss/imitation", loss.detach());
  return loss;
}

void RolloutStepLoss::evaluate(StepPlan& plan, StepMetrics& metrics) {
  if (plan.shares.empty()) metrics.add_total("loss", at::zeros({}, at::kDouble));
  for (Part& part : plan.parts) measure(part, plan, metrics);
}

SequenceLogps RolloutStepLoss::policy_logps(const TokenBatch& batch) const {
  return sequence_logps(*parts_.policy, batch,
                        {.by_products = {.entropy = true, .is_top1 = true},
                         .reduction = {},
                         .budget_bytes = parts_.options.head_budget_bytes,
                         .temperature = parts_.options.temperature,
                         .differentiable = {.entropy = needs_.entropies}});
}

ObjectiveOutput RolloutStepLoss::loss_of(Part& part, const StepPlan& plan,
                                         StepMetrics& metrics) const {
  const std::vector<TokenRow>& rows = part.rows;
  const TokenBatch batch =
      make_pair_batch(rows, /*with_rejected=*/false).to(parts_.policy->device());
  const SequenceLogps current = policy_logps(batch);
  const auto column = [&](Numbers of) { return column_of(rows, of, current.token_logps); };
  TokenArrays in{.logps = current.token_logps,
                 .old_logps = column(&RolloutColumns::old_logps),
                 .ref_logps = column(&RolloutColumns::ref_logps),
                 .sampler_logps = column(&RolloutColumns::sampler_logps),
                 .advantages = column(&RolloutColumns::advantages),
                 .old_values = column(&RolloutColumns::old_values),
                 .returns = column(&RolloutColumns::returns),
                 .completions = current.row_to_sequence,
                 .lens = current.lens.index_select(0, current.row_to_sequence)};
  in.completion_count = part.counts.rows;
  if (parts_.options.value_model) in.values = parts_.options.value_model->token_values(batch);
  in.totals = plan.rollouts;
  in.entropies = current.by_products.entropy;
  if (needs_.exact_kls) {
    in.ref_logps.reset();
    in.exact_kls = token_kl(*parts_.policy, *parts_.reference->policy(), batch,
                            {.temperature = parts_.options.temperature,
                             .budget_bytes = parts_.options.head_budget_bytes});
  } else if (has_kl_loss() && !in.ref_logps.defined()) {
    const at::NoGradGuard no_grad;
    in.ref_logps = parts_.reference->tempered_token_logps(batch, parts_.options.temperature);
  }
  if (objective_.options().level == RatioLevel::kTurn) {
    in.turns = turns_of(rows, in.turn_count, current.token_logps);
  }
  if (objective_.options().aggregation == Aggregation::kGroupTokenMean) {
    std::vector<double> tokens;
    for (const TokenRow& row : rows) tokens.push_back(plan.group_tokens.at(row.rollout.group));
    in.group_lens = uploaded(at::tensor(tokens, at::kDouble), current.token_logps.device())
                        .index_select(0, current.row_to_sequence);
  }
  ObjectiveOutput out = objective_.forward(in);

  metrics.add_total("loss", out.loss.detach());
  if (out.terms.size() > 1) {
    for (const auto& term : out.terms) metrics.add_total("loss/" + term.name, term.value);
  }
  // Means over all tokens of the step: those of rows that teach nothing have no limited ratio.
  for (const auto& statistic : out.statistics) {
    metrics.add_total(statistic.name, statistic.sum / plan.rollouts.tokens);
  }
  const auto tokens = static_cast<double>(part.counts.chosen);
  metrics.add_mean("entropy", current.by_products.entropy.detach().sum(at::kDouble), tokens);
  metrics.add_mean("mean_token_accuracy", current.by_products.is_top1.sum(), tokens);
  return out;
}

PairLogps RolloutStepLoss::measure_logps(const std::vector<TokenRow>& rows) const {
  const TokenBatch batch =
      make_pair_batch(rows, /*with_rejected=*/false).to(parts_.policy->device());
  PairLogps logps;
  logps.chosen_logps = policy_logps(batch).logps;
  return logps;
}

}  // namespace

std::unique_ptr<StepLoss> make_rollout_step_loss(const StepParts& parts, TokenObjective objective) {
  return std::make_unique<RolloutStepLoss>(parts, std::move(objective));
}

}  // namespace prefopt::detail
