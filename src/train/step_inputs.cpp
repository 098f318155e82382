// SPDX-License-Identifier: Apache-2.0
#include "train/step_inputs.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <array>
#include <span>
#include <utility>

#include "math/upload.h"
#include "prefopt/error.h"
#include "prefopt/losses/pair_fields.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/policy/sequence_kl.h"
#include "train/draw_seed.h"
#include "train/loss_metrics.h"

namespace prefopt {
namespace {

/// The column of the data that an input comes from.
struct ColumnInput {
  Input input;
  Column column;
  at::Tensor PairLogps::*value;
};

constexpr std::array kColumnInputs = {
    ColumnInput{Input::labels, Column::kLabel, &PairLogps::labels},
    ColumnInput{Input::margins, Column::kMargin, &PairLogps::margins},
    ColumnInput{Input::weights, Column::kWeight, &PairLogps::weights},
    ColumnInput{Input::label_probs, Column::kLabelProb, &PairLogps::label_probs},
    ColumnInput{Input::chosen_win_rates, Column::kChosenWinRate, &PairLogps::chosen_win_rates},
    ColumnInput{Input::rejected_win_rates, Column::kRejectedWinRate,
                &PairLogps::rejected_win_rates},
    ColumnInput{Input::advantages, Column::kAdvantage, &PairLogps::advantages},
    ColumnInput{Input::from_reference, Column::kFromReference, &PairLogps::from_reference},
};

}  // namespace

RowNeeds row_needs(const LossRequirements& needs) {
  RowNeeds rows{.rejected = needs.rejected(), .gold = needs.gold()};
  for (const ColumnInput& input : kColumnInputs) {
    if (needs.has(input.input)) rows.columns.push_back(input.column);
  }
  return rows;
}

namespace detail {
namespace {

constexpr InputSet kOverlap = {Input::chosen_overlap_logps, Input::rejected_overlap_logps};
constexpr InputSet kReferenceOverlap = {Input::ref_chosen_overlap_logps,
                                        Input::ref_rejected_overlap_logps};

at::Tensor column_of(const std::vector<TokenRow>& rows, Column column, const at::Tensor& like) {
  std::vector<double> values;
  for (const TokenRow& row : rows) values.push_back(row.columns[column]);
  return detail::uploaded(at::tensor(values, like.scalar_type()), like.device());
}

/// The parts of one value a sequence, in the order of make_pair_batch.
struct Sides {
  std::int64_t rows;
  bool with_rejected;

  at::Tensor chosen(const at::Tensor& all) const { return all.narrow(0, 0, rows); }
  at::Tensor rejected(const at::Tensor& all) const { return all.narrow(0, rows, rows); }
  at::Tensor gold(const at::Tensor& all) const {
    return all.narrow(0, with_rejected ? 2 * rows : rows, rows);
  }
};

/// Returns the sum over the first min(n_w, n_l) tokens of each side.
SequenceReduction overlap_of(const TokenBatch& batch, std::int64_t rows) {
  const at::Tensor& lens = batch.completion_lens;
  const at::Tensor shorter = at::minimum(lens.narrow(0, 0, rows), lens.narrow(0, rows, rows));
  std::vector<at::Tensor> overlaps{shorter, shorter};
  if (lens.size(0) > 2 * rows) {
    overlaps.push_back(lens.narrow(0, 2 * rows, lens.size(0) - 2 * rows));
  }
  return {.tail_weight = 0, .overlap_lens = at::cat(overlaps)};
}

}  // namespace

PairLogps StepInputs::measure(Part& part, const StepPlan& plan, StepMetrics& metrics) const {
  if (needs_.of_rewards) {
    PairLogps rewards = rewards_of(part.rows);
    set_columns(rewards, part.rows);
    check_provided(rewards);
    return rewards;
  }
  const bool squares = needs_.has(Input::chosen_log_sum_p_squared);
  const TokenBatch batch = batch_of(part.rows);
  const SequenceLogps current = logps_of_rows(
      part, batch,
      {.entropy = true, .mean_logit = true, .is_top1 = true, .log_sum_p_squared = squares});
  PairLogps logps;
  set_policy_logps(logps, part, batch, current);
  if (squares) set_log_sum_p_squared(logps, part.counts.rows, current);
  if (needs_.reference()) set_reference_logps(logps, part, batch, current);
  if (needs_.has(Input::kl_logps)) set_kl_logps(logps, part, plan);
  set_columns(logps, part.rows);
  if (needs_.has(Input::groups)) set_groups(logps, part);
  if (needs_.sample_source != SampleSource::kNone) set_samples(logps, part, plan.step, metrics);
  check_provided(logps);
  if (needs_.labels()) {
    add_label_token_metrics(current, logps.labels, part.counts, metrics);
  } else {
    add_token_metrics(current, part.counts, needs_.rejected(), metrics);
  }
  return logps;
}

void StepInputs::check_provided(const PairLogps& logps) const {
  for (const auto& field : kPairFields<at::Tensor>) {
    if (!field.needed(needs_) || (logps.*field.value).defined()) continue;
    throw ConfigError(fmt::format(
        "trainer: expected inputs that come with the others a loss asks for, got {} alone; both "
        "sides, both models, and sample_source with samples belong together",
        field.name));
  }
}

PairLogps StepInputs::measure_differentiable(Part& part) const {
  if (needs_.of_rewards) return rewards_of(part.rows);
  const TokenBatch batch = batch_of(part.rows);
  PairLogps logps;
  set_policy_logps(logps, part, batch, logps_of_rows(part, batch));
  if (part.samples) logps.sample_logps = policy_logps(*part.samples).logps;
  return logps;
}

PairLogps StepInputs::measure_logps(const std::vector<TokenRow>& rows) const {
  if (needs_.of_rewards) return rewards_of(rows);
  Part part{
      .rows = rows, .partners = {}, .groups = {}, .place = 0, .number = 0, .counts = count(rows)};
  const TokenBatch batch = batch_of(rows);
  const SequenceLogps current = policy_logps(batch);
  PairLogps logps;
  set_policy_logps(logps, part, batch, current);
  if (needs_.reference()) {
    const Sides sides{std::ssize(rows), needs_.rejected()};
    const at::Tensor before = reference_->sequence_logps(batch);
    logps.ref_chosen_logps = sides.chosen(before);
    if (needs_.rejected()) logps.ref_rejected_logps = sides.rejected(before);
  }
  return logps;
}

PairLogps StepInputs::rewards_of(const std::vector<TokenRow>& rows) const {
  const at::Tensor rewards = reward_policy_->rewards(rows);
  const Sides sides{std::ssize(rows), /*with_rejected=*/true};
  PairLogps logps;
  logps.chosen_logps = sides.chosen(rewards);
  logps.rejected_logps = sides.rejected(rewards);
  return logps;
}

SequenceLogps StepInputs::policy_logps(const TokenBatch& batch,
                                       const ByProducts& by_products) const {
  return sequence_logps(
      *policy_, batch,
      {.by_products = by_products, .reduction = {}, .budget_bytes = head_budget_bytes_});
}

SequenceLogps StepInputs::logps_of_rows(Part& part, const TokenBatch& batch,
                                        const ByProducts& by_products) const {
  if (!records_routes_) return policy_logps(batch, by_products);
  const RouterRecord record;
  SequenceLogps logps = policy_logps(batch_of(with_last_tokens(part.rows)), by_products);
  part.routes = record.load();
  return logps;
}

RouterLoad StepInputs::count_routes(std::vector<Part>& parts) const {
  const at::NoGradGuard no_grad;
  RouterLoad load;
  for (Part& part : parts) {
    logps_of_rows(part, {});
    load.add(part.routes);
  }
  return load;
}

TokenBatch StepInputs::batch_of(const std::vector<TokenRow>& rows) const {
  return make_pair_batch(rows, needs_.rejected(), needs_.gold()).to(policy_->device());
}

TokenBatch StepInputs::draw_samples(const Part& part, std::int64_t step) const {
  const at::NoGradGuard no_grad;
  std::vector<std::vector<std::int64_t>> prompts;
  for (const TokenRow& row : part.rows) {
    prompts.insert(prompts.end(), static_cast<std::size_t>(needs_.samples_per_prompt), row.prompt);
  }
  SamplingOptions sampling = sampling_;
  sampling.seed = seed_of_step(sampling_.seed, step);
  sampling.first_index = part.number * needs_.samples_per_prompt;
  Policy& sampler =
      needs_.sample_source == SampleSource::kReference ? *reference_->policy() : *policy_;
  const auto completions = sample(sampler, prompts, sampling);
  std::vector<TokenSequence> sequences;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    sequences.push_back({.prompt = prompts[i], .completion = completions[i]});
  }
  return make_batch(sequences).to(policy_->device());
}

TokenBatch StepInputs::mismatched(const Part& part, const StepPlan& plan) const {
  std::vector<TokenSequence> sequences;
  for (std::size_t i = 0; i < part.rows.size(); ++i) {
    const TokenRow& other = plan.rows[part.partners[i]];
    sequences.push_back(
        {part.rows[i].prompt, other.chosen, other.chosen_weights, other.chosen_mask});
  }
  return make_batch(sequences).to(policy_->device());
}

at::Tensor StepInputs::limited_logratios(const at::Tensor& reference_token_logps,
                                         const SequenceLogps& current) const {
  const at::Tensor each =
      current.token_logps - reference_token_logps.to(current.token_logps.scalar_type());
  return reduce_tokens(at::clamp(each, needs_.limits->low, needs_.limits->high), current);
}

void StepInputs::set_policy_logps(PairLogps& logps, Part& part, const TokenBatch& batch,
                                  const SequenceLogps& current) const {
  const Sides sides{part.counts.rows, needs_.rejected()};
  const at::Tensor lens = current.lens.to(current.logps.options());
  logps.chosen_logps = sides.chosen(current.logps);
  logps.chosen_lens = sides.chosen(lens);
  if (needs_.rejected()) {
    logps.rejected_logps = sides.rejected(current.logps);
    logps.rejected_lens = sides.rejected(lens);
  }
  if (needs_.gold()) {
    logps.gold_logps = sides.gold(current.logps);
    logps.gold_lens = sides.gold(lens);
  }
  if (needs_.inputs.has_any(kOverlap)) {
    const at::Tensor overlaps =
        reduce_tokens(current.token_logps, current, overlap_of(batch, part.counts.rows));
    logps.chosen_overlap_logps = sides.chosen(overlaps);
    logps.rejected_overlap_logps = sides.rejected(overlaps);
  }
  if (needs_.has(Input::chosen_confident_logps)) {
    const at::Tensor weighed = current.token_logps.detach().exp() * current.token_logps;
    logps.chosen_confident_logps = sides.chosen(reduce_tokens(weighed, current));
  }
  const bool needs_reference_tokens = needs_.limits || needs_.inputs.has_any(kReferenceOverlap);
  if (needs_reference_tokens && !part.reference_token_logps.defined()) {
    const at::NoGradGuard no_grad;
    part.reference_token_logps = reference_->token_logps(batch);
  }
  if (needs_.limits) {
    const at::Tensor limited = limited_logratios(part.reference_token_logps, current);
    logps.chosen_limited_logratios = sides.chosen(limited);
    if (needs_.rejected()) logps.rejected_limited_logratios = sides.rejected(limited);
  }
  if (needs_.has(Input::prompt_logps)) set_prompt_logps(logps, part.rows);
  if (needs_.has(Input::chosen_seq_kl)) {
    const at::Tensor kl = sequence_kl(*policy_, *reference_->policy(), batch);
    logps.chosen_seq_kl = sides.chosen(kl);
    logps.rejected_seq_kl = sides.rejected(kl);
  }
}

void StepInputs::set_prompt_logps(PairLogps& logps, const std::vector<TokenRow>& rows) const {
  std::vector<TokenSequence> sequences;
  std::vector<std::int64_t> places;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::span<const std::int64_t> prompt = rows[i].prompt;
    if (prompt.size() < 2) continue;  // nothing predicts its only token
    sequences.push_back({.prompt = prompt.first(1), .completion = prompt.subspan(1)});
    places.push_back(static_cast<std::int64_t>(i));
  }
  logps.prompt_logps = at::zeros_like(logps.chosen_logps);
  logps.prompt_lens = at::zeros_like(logps.chosen_logps);
  if (sequences.empty()) return;
  const SequenceLogps prompts = policy_logps(make_batch(sequences).to(policy_->device()));
  const at::Tensor at_rows = uploaded(at::tensor(places, at::kLong), prompts.logps.device());
  logps.prompt_logps = logps.prompt_logps.index_add(0, at_rows, prompts.logps);
  logps.prompt_lens =
      logps.prompt_lens.index_add(0, at_rows, prompts.lens.to(logps.prompt_lens.options()));
}

void StepInputs::set_log_sum_p_squared(PairLogps& logps, std::int64_t rows,
                                       const SequenceLogps& current) const {
  const Sides sides{rows, needs_.rejected()};
  const at::Tensor sums = reduce_tokens(current.by_products.log_sum_p_squared, current);
  logps.chosen_log_sum_p_squared = sides.chosen(sums);
  logps.rejected_log_sum_p_squared = sides.rejected(sums);
}

void StepInputs::set_reference_logps(PairLogps& logps, const Part& part, const TokenBatch& batch,
                                     const SequenceLogps& current) const {
  const at::NoGradGuard no_grad;
  const Sides sides{part.counts.rows, needs_.rejected()};
  const at::Tensor& tokens = part.reference_token_logps;
  const at::Tensor before =
      tokens.defined() ? reduce_tokens(tokens, current) : reference_->sequence_logps(batch);
  logps.ref_chosen_logps = sides.chosen(before);
  if (needs_.rejected()) logps.ref_rejected_logps = sides.rejected(before);
  if (!needs_.inputs.has_any(kReferenceOverlap)) return;
  const at::Tensor overlaps = reduce_tokens(tokens, current, overlap_of(batch, part.counts.rows));
  logps.ref_chosen_overlap_logps = sides.chosen(overlaps);
  logps.ref_rejected_overlap_logps = sides.rejected(overlaps);
}

void StepInputs::set_kl_logps(PairLogps& logps, const Part& part, const StepPlan& plan) const {
  const at::NoGradGuard no_grad;
  const TokenBatch others = mismatched(part, plan);
  const SequenceLogps of_others = policy_logps(others);
  logps.kl_logps = of_others.logps;
  if (!needs_.limits) {
    logps.ref_kl_logps = reference_->sequence_logps(others);
    return;
  }
  const at::Tensor tokens = reference_->token_logps(others);
  logps.ref_kl_logps = reduce_tokens(tokens, of_others);
  logps.kl_limited_logratios = limited_logratios(tokens, of_others);
}

void StepInputs::set_columns(PairLogps& logps, const std::vector<TokenRow>& rows) const {
  for (const ColumnInput& input : kColumnInputs) {
    if (!needs_.has(input.input)) continue;
    logps.*input.value = column_of(rows, input.column, logps.chosen_logps);
  }
}

void StepInputs::set_groups(PairLogps& logps, const Part& part) {
  const std::vector<double> numbers(part.groups.begin(), part.groups.end());
  const at::Tensor& like = logps.chosen_logps;
  logps.groups = uploaded(at::tensor(numbers, like.scalar_type()), like.device());
}

void StepInputs::set_samples(PairLogps& logps, Part& part, std::int64_t step,
                             StepMetrics& metrics) const {
  part.samples = draw_samples(part, step);
  const SequenceLogps sampled = policy_logps(*part.samples);
  logps.samples_per_prompt = needs_.samples_per_prompt;
  logps.sample_logps = sampled.logps;
  logps.sample_lens = sampled.lens.to(sampled.logps.options());
  if (!reference_) return;
  const at::NoGradGuard no_grad;
  // Around a cache, which would keep what never comes again.
  Policy* const model = reference_->policy();
  logps.ref_sample_logps = model != nullptr ? sequence_logps(*model, *part.samples).logps
                                            : reference_->sequence_logps(*part.samples);
  // Samples of the reference would estimate minus the KL in the other direction.
  if (needs_.sample_source == SampleSource::kPolicy) {
    metrics.add_mean("kl", (logps.sample_logps.detach() - logps.ref_sample_logps).sum(),
                     static_cast<double>(part.samples->sequences()));
  }
}

}  // namespace detail
}  // namespace prefopt
