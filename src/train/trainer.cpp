// SPDX-License-Identifier: Apache-2.0
#include "prefopt/train/trainer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/gt.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <utility>

#include "core/memory.h"
#include "core/random.h"
#include "prefopt/error.h"
#include "prefopt/logps/sequence_kl.h"
#include "prefopt/logps/sequence_logps.h"
#include "prefopt/losses/pair_fields.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/state.h"
#include "train/token_range.h"

namespace prefopt {
namespace {

constexpr std::int64_t kMaxSkipped = 3;
/// All evaluations draw the same samples, so that they differ by the policy alone.
constexpr std::int64_t kEvaluation = -1;

/// Seeds of different steps have nothing in common.
std::int64_t seed_of_step(std::int64_t seed, std::int64_t step) {
  // One more step of the generator's own increment for each step of training.
  const auto state = static_cast<std::uint64_t>(seed) +
                     0x9e3779b97f4a7c15ULL * (static_cast<std::uint64_t>(step) + 1);
  return static_cast<std::int64_t>(splitmix64(state));
}

/// Token counts of a whole step, known before any forward: of the completions, those that count.
struct StepCounts {
  std::int64_t prompt = 0;
  std::int64_t predicted_prompt = 0;  ///< without the first token, which nothing predicts
  std::int64_t chosen = 0;
  std::int64_t rejected = 0;
  std::int64_t gold = 0;
  std::int64_t all_chosen = 0, all_rejected = 0, all_gold = 0;  ///< with those that do not
  std::int64_t desirable = 0;  ///< of `chosen`, those of rows with the label 1
};

/// Of an unpaired row.
bool is_desirable(const TokenPair& row) { return row.columns[Column::kLabel] > 0.5; }

StepCounts count_tokens(const std::vector<TokenPair>& pairs) {
  StepCounts counts;
  for (const auto& pair : pairs) {
    counts.prompt += std::ssize(pair.prompt);
    counts.predicted_prompt += std::max<std::int64_t>(std::ssize(pair.prompt) - 1, 0);
    const std::int64_t chosen = counted_tokens(pair.chosen, pair.chosen_mask);
    counts.chosen += chosen;
    if (is_desirable(pair)) counts.desirable += chosen;
    counts.rejected += counted_tokens(pair.rejected, pair.rejected_mask);
    counts.gold += counted_tokens(pair.gold, pair.gold_mask);
    counts.all_chosen += std::ssize(pair.chosen);
    counts.all_rejected += std::ssize(pair.rejected);
    counts.all_gold += std::ssize(pair.gold);
  }
  return counts;
}

/// Where a loss finds a column of the data.
struct ColumnInput {
  bool LossRequirements::*needed;
  Column column;
  at::Tensor PairLogps::*value;
};

constexpr std::array kColumnInputs = {
    ColumnInput{&LossRequirements::labels, Column::kLabel, &PairLogps::labels},
    ColumnInput{&LossRequirements::margins, Column::kMargin, &PairLogps::margins},
    ColumnInput{&LossRequirements::weights, Column::kWeight, &PairLogps::weights},
    ColumnInput{&LossRequirements::label_probs, Column::kLabelProb, &PairLogps::label_probs},
    ColumnInput{&LossRequirements::win_rates, Column::kChosenWinRate, &PairLogps::chosen_win_rates},
    ColumnInput{&LossRequirements::win_rates, Column::kRejectedWinRate,
                &PairLogps::rejected_win_rates},
};

/// The column of some rows, as a tensor that a loss takes.
at::Tensor column_of(const std::vector<TokenPair>& rows, Column column, const at::Tensor& like) {
  std::vector<double> values;
  for (const TokenPair& row : rows) values.push_back(row.columns[column]);
  return at::tensor(values, at::kDouble).to(like.options());
}

/// Rows side by side: those of all parts.
PairLogps joined(const std::vector<PairLogps>& parts, const LossRequirements& needs) {
  PairLogps whole;
  whole.samples_per_prompt = parts.front().samples_per_prompt;
  for (const auto& field : kPairFields<at::Tensor>) {
    if (!field.needed(needs)) continue;
    std::vector<at::Tensor> values;
    for (const PairLogps& part : parts) values.push_back(part.*field.value);
    whole.*field.value = at::cat(values);
  }
  return whole;
}

/// As torch's clip_grad_norm_; `max_norm` 0: no clipping.
double clip_factor(double norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1;
}

TrainerOptions checked_options(TrainerOptions options) {
  checked(options.optimizer, "optimizer");
  if (options.micro_batch_size < 0) {
    throw ConfigError(
        fmt::format("micro_batch_size: expected 0 or more, got {}; 0 means the whole "
                    "step at once",
                    options.micro_batch_size));
  }
  if (options.evaluation_batch_size < 0) {
    throw ConfigError(
        fmt::format("evaluation_batch_size: expected 0 or more, got {}; 0 means all rows at once",
                    options.evaluation_batch_size));
  }
  if (options.micro_batch_tokens < 0) {
    throw ConfigError(
        fmt::format("micro_batch_tokens: expected 0 or more, got {}; 0 means no limit",
                    options.micro_batch_tokens));
  }
  return options;
}

/// The width of a pair once it is padded.
std::int64_t width_of(const TokenPair& pair) {
  return std::ssize(pair.prompt) + std::max(std::ssize(pair.chosen), std::ssize(pair.rejected));
}

/// Pairs of one step, cut so that no part exceeds the options' limits, except for a single pair.
std::vector<std::vector<TokenPair>> micro_batches(const std::vector<TokenPair>& pairs,
                                                  const TrainerOptions& options) {
  std::vector<std::vector<TokenPair>> parts;
  std::int64_t tokens = 0;
  for (const TokenPair& pair : pairs) {
    tokens += detail::tokens_of(pair);
    const bool is_full =
        parts.empty() ||
        (options.micro_batch_size > 0 && std::ssize(parts.back()) == options.micro_batch_size) ||
        (options.micro_batch_tokens > 0 && tokens > options.micro_batch_tokens);
    if (is_full) {
      parts.emplace_back();
      tokens = detail::tokens_of(pair);
    }
    parts.back().push_back(pair);
  }
  return parts;
}

/// Some rows of a step.
struct Part {
  std::vector<TokenPair> rows;
  std::int64_t place;   ///< of the first among the step's
  std::int64_t number;  ///< of the first, for fresh samples: in an evaluation, among all its rows
};

/// Log-probs of some rows.
struct Measured {
  PairLogps logps;
  at::Tensor reference_tokens;  ///< of Impl::tokens_of_reference
};

/// A step's rows in the order in which they are taken.
struct StepRows {
  std::vector<TokenPair> rows;
  /// Of each, whose completion a KL is estimated on under its prompt; empty where none is.
  std::vector<const TokenPair*> partners;
};

/// For each row the next one in the step's own order, from its end to its beginning; rows of the
/// same prompt are passed over where there is another, as their completions answer this one too.
std::vector<std::size_t> partners_of(const std::vector<TokenPair>& rows) {
  const std::size_t count = rows.size();
  std::vector<std::size_t> partners(count);
  for (std::size_t i = 0; i < count; ++i) partners[i] = (i + 1) % count;
  const bool all_alike = std::all_of(rows.begin(), rows.end(), [&](const TokenPair& row) {
    return row.prompt == rows.front().prompt;
  });
  if (all_alike) return partners;
  // The last rows look beyond the end, so they are gone through twice.
  for (std::size_t i = 2 * count; i-- > 0;) {
    const std::size_t row = i % count;
    const std::size_t next = (row + 1) % count;
    partners[row] = rows[row].prompt == rows[next].prompt ? partners[next] : next;
  }
  return partners;
}

/// Consecutive rows, `size` at a time. A single row left over joins those before it: a loss of
/// several rows may have none for one.
std::vector<std::vector<TokenPair>> cut_by_place(const std::vector<TokenPair>& rows,
                                                 std::int64_t size) {
  std::vector<std::vector<TokenPair>> parts;
  for (auto begin = rows.begin(); begin != rows.end();) {
    const auto left = rows.end() - begin;
    const auto end = begin + (left <= size + 1 ? left : size);
    parts.emplace_back(begin, end);
    begin = end;
  }
  return parts;
}

/// The parts of a value a sequence, in the order of make_pair_batch.
struct Sides {
  std::int64_t rows;
  bool with_rejected;

  at::Tensor chosen(const at::Tensor& all) const { return all.narrow(0, 0, rows); }
  at::Tensor rejected(const at::Tensor& all) const { return all.narrow(0, rows, rows); }
  at::Tensor gold(const at::Tensor& all) const {
    return all.narrow(0, with_rejected ? 2 * rows : rows, rows);
  }
};

/// The sum over the first min(n_w, n_l) tokens of each side.
SequenceReduction head_of(const TokenBatch& batch, std::int64_t rows) {
  const at::Tensor& lens = batch.completion_lens;
  const at::Tensor shorter = at::minimum(lens.narrow(0, 0, rows), lens.narrow(0, rows, rows));
  std::vector<at::Tensor> heads{shorter, shorter};
  if (lens.size(0) > 2 * rows) heads.push_back(lens.narrow(0, 2 * rows, lens.size(0) - 2 * rows));
  return {.tail_weight = 0, .head_lens = at::cat(heads)};
}

/// Entropy over all completion tokens, accuracy over those of the chosen: TRL's definitions.
void add_token_metrics(const SequenceLogps& current, const StepCounts& counts, bool with_rejected,
                       detail::StepMetrics& metrics) {
  const auto& by = current.by_products;
  const auto chosen_rows = static_cast<double>(counts.chosen);
  metrics.add_mean("entropy", by.entropy.sum(at::kDouble), static_cast<double>(by.entropy.size(0)));
  metrics.add_mean("logits/chosen", by.mean_logit.narrow(0, 0, counts.chosen).sum(at::kDouble),
                   chosen_rows);
  metrics.add_mean("mean_token_accuracy", by.is_top1.narrow(0, 0, counts.chosen).sum(),
                   chosen_rows);
  if (with_rejected) {
    metrics.add_mean("logits/rejected",
                     by.mean_logit.narrow(0, counts.chosen, counts.rejected).sum(at::kDouble),
                     static_cast<double>(counts.rejected));
  }
}

/// Sums over `values` of desirable rows, or tokens of such, and over those of the others.
struct LabelSums {
  const at::Tensor& is_desirable;
  double desirable, undesirable;
  detail::StepMetrics& metrics;

  void add_chosen(const std::string& name, const at::Tensor& values) const {
    add(name, values, is_desirable, desirable);
  }
  void add_both(const std::string& name, const at::Tensor& values) const {
    add(name + "/chosen", values, is_desirable, desirable);
    add(name + "/rejected", values, is_desirable.logical_not(), undesirable);
  }

 private:
  void add(const std::string& name, const at::Tensor& values, const at::Tensor& which,
           double count) const {
    if (!values.defined() || count == 0) return;
    metrics.add_mean(name, values.masked_fill(which.logical_not(), 0).sum(at::kDouble), count);
  }
};

/// The same of unpaired rows, of which the desirable ones count as chosen.
void add_label_token_metrics(const SequenceLogps& current, const at::Tensor& labels,
                             const StepCounts& counts, detail::StepMetrics& metrics) {
  const auto& by = current.by_products;
  metrics.add_mean("entropy", by.entropy.sum(at::kDouble), static_cast<double>(by.entropy.size(0)));
  const auto first = [&](const at::Tensor& of_tokens) {
    return of_tokens.narrow(0, 0, counts.chosen);
  };
  const at::Tensor of_tokens = labels.gt(0.5).index_select(0, first(current.row_to_sequence));
  const LabelSums sums{of_tokens, static_cast<double>(counts.desirable),
                       static_cast<double>(counts.chosen - counts.desirable), metrics};
  sums.add_both("logits", first(by.mean_logit));
  sums.add_chosen("mean_token_accuracy", first(by.is_top1));
}

void add_pair_metrics(const PairLogps& logps, const LossOutput& out, double pairs,
                      detail::StepMetrics& metrics) {
  const auto add = [&](std::string_view name, const at::Tensor& values) {
    if (values.defined()) metrics.add_mean(name, values.sum(), pairs);
  };
  add("rewards/chosen", out.chosen_rewards);
  add("rewards/rejected", out.rejected_rewards);
  if (out.chosen_rewards.defined() && out.rejected_rewards.defined()) {
    add("rewards/accuracies", at::gt(out.chosen_rewards, out.rejected_rewards));
  }
  add("rewards/margins", out.margins);
  const bool are_sums = !out.logged_chosen_logps.defined();
  add("logps/chosen", are_sums ? logps.chosen_logps : out.logged_chosen_logps);
  add("logps/rejected", are_sums ? logps.rejected_logps : out.logged_rejected_logps);
  if (!are_sums) return;  // the reference's sums would be compared with something else
  add("logps/ref_chosen", logps.ref_chosen_logps);
  add("logps/ref_rejected", logps.ref_rejected_logps);
}

/// Of unpaired rows: desirable ones count as chosen, the others as rejected, as in TRL.
void add_label_metrics(const PairLogps& logps, const LossOutput& out,
                       const std::vector<TokenPair>& rows, detail::StepMetrics& metrics) {
  const auto desirable = static_cast<double>(std::count_if(rows.begin(), rows.end(), is_desirable));
  const at::Tensor labels = logps.labels.gt(0.5);
  const LabelSums sums{labels, desirable, static_cast<double>(rows.size()) - desirable, metrics};
  sums.add_both("rewards", out.chosen_rewards);
  sums.add_both("logps", logps.chosen_logps);
}

bool is_finite(const at::Tensor& values) {
  return !values.defined() || at::isfinite(values).all().item<bool>();
}

std::vector<double> numbers_of(const at::Tensor& values) {
  const at::Tensor wide = values.to(at::kDouble).cpu().contiguous();
  return {wide.const_data_ptr<double>(), wide.const_data_ptr<double>() + wide.numel()};
}

/// Returns the result of `work`; `fail` throws where an allocation fails in it, and is told what
/// the allocator said.
template <class Work, class Fail>
auto within_memory(Work&& work, Fail&& fail) {
  try {
    return work();
  } catch (const std::exception& error) {
    const std::string why = detail::allocation_failure(error);
    if (!why.empty()) fail(why);
    throw;
  }
}

[[noreturn]] void throw_no_memory_for_rows(const std::string& where,
                                           const std::vector<TokenPair>& pairs,
                                           const TrainerOptions& options, const std::string& why) {
  std::size_t most_pairs = 0;
  std::int64_t most_tokens = 0;
  for (const auto& part : micro_batches(pairs, options)) {
    std::int64_t tokens = 0;
    for (const TokenPair& pair : part) tokens += detail::tokens_of(pair);
    most_pairs = std::max(most_pairs, part.size());
    most_tokens = std::max(most_tokens, tokens);
  }
  throw OutOfMemoryError(fmt::format(
      "{}: expected memory for {} pairs in micro-batches of up to {} pairs and {} tokens, got '{}' "
      "at a peak of {} MiB; lower train.micro_batch_tokens or data.max_length, or set "
      "train.checkpointing to full",
      where, pairs.size(), most_pairs, most_tokens, why, detail::peak_memory_bytes() >> 20));
}

[[noreturn]] void throw_no_memory_for_state(std::int64_t step, const OptimizerOptions& options,
                                            const std::string& why) {
  const bool is_narrow = options.state_dtype == StateDtype::kBFloat16;
  throw OutOfMemoryError(fmt::format(
      "step {}: expected memory for AdamW's means of all trained parameters, got '{}' at a peak of "
      "{} MiB; {}train an adapter (model.use_lora)",
      step, why, detail::peak_memory_bytes() >> 20,
      is_narrow ? "" : "set optimizer.state_dtype to bfloat16, or "));
}

}  // namespace

RowNeeds row_needs(const LossRequirements& needs) {
  RowNeeds rows{.rejected = needs.rejected, .gold = needs.gold};
  for (const ColumnInput& input : kColumnInputs) {
    if (needs.*input.needed) rows.columns.push_back(input.column);
  }
  return rows;
}

struct Trainer::Impl {
  Impl(std::shared_ptr<Policy> policy_, std::shared_ptr<Reference> reference_, Loss loss_,
       TrainerOptions options_)
      : policy(std::move(policy_)),
        reference(std::move(reference_)),
        loss(std::move(loss_)),
        needs(loss.requirements()),
        options(checked_options(std::move(options_))),
        optimizer(policy->named_parameters(), options.optimizer) {}

  /// Who draws the fresh samples.
  Policy& sampler() {
    return needs.sample_source == SampleSource::kReference ? *reference->policy() : *policy;
  }

  void check(const std::vector<TokenPair>& pairs) const;
  /// Pairs of like length side by side where they will be padded. Fresh samples go by a pair's
  /// place, so pairs that get some stay where they are.
  StepRows bucketed(const std::vector<TokenPair>& pairs) const;
  /// Fresh completions of the prompts of `part`.
  TokenBatch draw_samples(const Part& part, std::int64_t step);
  at::Tensor reference_logps_of_samples(const TokenBatch& samples);
  /// The completions of the rows' partners, under these rows' prompts.
  TokenBatch mismatched(const Part& part, const StepRows& step_rows) const;
  /// All that the loss needs of some rows, with a graph to the policy unless grad mode is off.
  Measured measure(const Part& part, const StepRows& step_rows, std::int64_t step,
                   detail::StepMetrics& metrics);
  /// The same again, for its graph alone: the values that carry a gradient and no others.
  PairLogps measure_differentiable(const Part& part, std::int64_t step,
                                   const at::Tensor& reference_tokens);
  SequenceLogps policy_logps(const TokenBatch& batch, const ByProducts& by_products = {}) const {
    return sequence_logps(
        *policy, batch,
        {.by_products = by_products, .reduction = {}, .budget_bytes = options.head_budget_bytes});
  }
  /// The prompts of `rows` as separate texts.
  void set_prompt_logps(PairLogps& logps, const std::vector<TokenPair>& rows) const;
  /// The reference's log-probs of each token; undefined where the loss asks for sums alone.
  at::Tensor tokens_of_reference(const TokenBatch& batch) const;
  /// Its sums over the sequences, of those tokens where they are known already.
  at::Tensor sums_of_reference(const TokenBatch& batch, const SequenceLogps& current,
                               const at::Tensor& tokens) const;
  /// Sums of log(pi/pi_ref) of each token within the loss's limits.
  at::Tensor limited_logratios(const SequenceLogps& current,
                               const at::Tensor& reference_tokens) const;
  /// Sums, counts and derived quantities of the policy's log-probs of `rows`.
  void set_policy_logps(PairLogps& logps, const Part& part, const TokenBatch& batch,
                        const SequenceLogps& current, const at::Tensor& reference_tokens) const;
  void set_samples(PairLogps& logps, const Part& part, std::int64_t step,
                   detail::StepMetrics& metrics);
  /// The loss's value counts as `share` of the metrics'.
  LossOutput evaluate(const PairLogps& logps, const std::vector<TokenPair>& rows, double share,
                      detail::StepMetrics& metrics);
  /// For losses that see the whole step: its log-probs without a graph first, then the parts again,
  /// each with its share of the gradient.
  void accumulate_whole(const std::vector<Part>& parts, const StepRows& step_rows,
                        const StepTotals& totals, bool train, std::int64_t step, double share,
                        detail::StepMetrics& metrics);
  /// Sums over the micro-batches of a step; `train` adds the gradients into the parameters. Of an
  /// evaluation, `pairs` are `share` of it, the first its row `number`.
  void accumulate_step(const std::vector<TokenPair>& pairs, bool train, std::int64_t step,
                       double share, std::int64_t number, detail::StepMetrics& metrics);
  /// A step, or an evaluation, of which a loss of whole steps sees as many rows at once as of a
  /// step.
  detail::StepMetrics accumulate(const std::vector<TokenPair>& pairs, bool train,
                                 std::int64_t step);
  std::vector<Part> parts_of(const std::vector<TokenPair>& rows, std::int64_t number = 0) const;
  void add_lengths(const std::vector<TokenPair>& rows, const StepCounts& counts,
                   detail::StepMetrics& metrics) const;
  detail::StepMetrics gradients(const std::vector<TokenPair>& pairs);
  /// The same; where sampling meets logits that are not finite, it says of what step.
  detail::StepMetrics gradients_or_report(const std::vector<TokenPair>& pairs);
  void check_gradient(const LossOutput& out) const;
  /// Says what the step was whose gradients are there still. This takes a further pass over the
  /// rows: it is rare and worth it.
  void report_non_finite(const std::vector<TokenPair>& pairs, std::int64_t step, double loss_value,
                         double grad_norm, const Metrics& metrics);
  /// Log-probs of policy and reference, without a graph and without samples.
  PairLogps plain_logps(const Part& part);
  void visit_state(detail::StateVisitor& visitor);
  LossState loss_state() const;
  void set_loss_state(const LossState& state);

  std::shared_ptr<Policy> policy;
  std::shared_ptr<Reference> reference;
  Loss loss;
  LossRequirements needs;
  TrainerOptions options;
  detail::Optimizer optimizer;
  std::int64_t steps_done = 0;
  std::int64_t tokens_seen = 0;
  std::int64_t skipped_in_a_row = 0;
  Metrics step_counts;
  RunningMean<at::Tensor> running;
  RunningMean<at::Tensor> next_running;  ///< what it becomes if the step is taken
};

void Trainer::Impl::check(const std::vector<TokenPair>& pairs) const {
  if (pairs.empty()) throw ShapeError("trainer: expected at least one pair, got none");
  if (needs.kl_logps && pairs.size() < 2) {
    throw ShapeError(
        fmt::format("{}: expected at least 2 rows a step, got 1; its KL is estimated on the "
                    "completions of other rows",
                    loss.info().name));
  }
  detail::check_token_range(pairs, policy->vocab_size(), "trainer");
}

StepRows Trainer::Impl::bucketed(const std::vector<TokenPair>& pairs) const {
  std::vector<std::size_t> order(pairs.size());
  std::iota(order.begin(), order.end(), 0);
  if (!policy->packs() && needs.sample_source == SampleSource::kNone) {
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return width_of(pairs[a]) < width_of(pairs[b]);
    });
  }
  // By place in the step, whatever the order in which this policy takes the rows.
  const auto partners = needs.kl_logps ? partners_of(pairs) : std::vector<std::size_t>();
  StepRows step_rows;
  for (const std::size_t row : order) {
    step_rows.rows.push_back(pairs[row]);
    if (needs.kl_logps) step_rows.partners.push_back(&pairs[partners[row]]);
  }
  return step_rows;
}

TokenBatch Trainer::Impl::draw_samples(const Part& part, std::int64_t step) {
  const at::NoGradGuard no_grad;
  std::vector<std::vector<std::int64_t>> prompts;
  for (const auto& pair : part.rows) {
    prompts.insert(prompts.end(), static_cast<std::size_t>(needs.samples_per_prompt), pair.prompt);
  }
  auto sampling = options.sampling;
  sampling.seed = seed_of_step(options.sampling.seed, step);
  sampling.first_index = part.number * needs.samples_per_prompt;
  const auto completions = sample(sampler(), prompts, sampling);
  std::vector<TokenSequence> sequences;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    sequences.push_back({.prompt = prompts[i], .completion = completions[i]});
  }
  return make_batch(sequences).to(policy->device());
}

at::Tensor Trainer::Impl::reference_logps_of_samples(const TokenBatch& samples) {
  // Around a cache, which would keep what never comes again.
  auto* model = reference->policy();
  return model != nullptr ? sequence_logps(*model, samples).logps
                          : reference->sequence_logps(samples);
}

TokenBatch Trainer::Impl::mismatched(const Part& part, const StepRows& step_rows) const {
  std::vector<TokenSequence> sequences;
  for (std::size_t i = 0; i < part.rows.size(); ++i) {
    const TokenPair& other = *step_rows.partners[static_cast<std::size_t>(part.place) + i];
    sequences.push_back(
        {part.rows[i].prompt, other.chosen, other.chosen_weights, other.chosen_mask});
  }
  return make_batch(sequences).to(policy->device());
}

void Trainer::Impl::set_prompt_logps(PairLogps& logps, const std::vector<TokenPair>& rows) const {
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
  const SequenceLogps prompts = policy_logps(make_batch(sequences).to(policy->device()));
  const at::Tensor at_rows = at::tensor(places, at::kLong).to(prompts.logps.device());
  logps.prompt_logps = logps.prompt_logps.index_add(0, at_rows, prompts.logps);
  logps.prompt_lens =
      logps.prompt_lens.index_add(0, at_rows, prompts.lens.to(logps.prompt_lens.options()));
}

at::Tensor Trainer::Impl::tokens_of_reference(const TokenBatch& batch) const {
  if (!needs.limits && !(needs.head_logps && needs.reference)) return {};
  const at::NoGradGuard no_grad;
  return reference->token_logps(batch);
}

at::Tensor Trainer::Impl::sums_of_reference(const TokenBatch& batch, const SequenceLogps& current,
                                            const at::Tensor& tokens) const {
  const at::NoGradGuard no_grad;
  return tokens.defined() ? reduce_tokens(tokens, current) : reference->sequence_logps(batch);
}

at::Tensor Trainer::Impl::limited_logratios(const SequenceLogps& current,
                                            const at::Tensor& reference_tokens) const {
  const at::Tensor each =
      current.token_logps - reference_tokens.to(current.token_logps.scalar_type());
  return reduce_tokens(at::clamp(each, needs.limits->low, needs.limits->high), current);
}

void Trainer::Impl::set_policy_logps(PairLogps& logps, const Part& part, const TokenBatch& batch,
                                     const SequenceLogps& current,
                                     const at::Tensor& reference_tokens) const {
  const auto rows = std::ssize(part.rows);
  const Sides sides{rows, needs.rejected};
  const auto lens = current.lens.to(current.logps.options());
  logps.chosen_logps = sides.chosen(current.logps);
  logps.chosen_lens = sides.chosen(lens);
  if (needs.rejected) {
    logps.rejected_logps = sides.rejected(current.logps);
    logps.rejected_lens = sides.rejected(lens);
  }
  if (needs.gold) {
    logps.gold_logps = sides.gold(current.logps);
    logps.gold_lens = sides.gold(lens);
  }
  if (needs.head_logps) {
    const auto heads = reduce_tokens(current.token_logps, current, head_of(batch, rows));
    logps.chosen_head_logps = sides.chosen(heads);
    logps.rejected_head_logps = sides.rejected(heads);
  }
  if (needs.confident) {
    const at::Tensor weighed = current.token_logps.detach().exp() * current.token_logps;
    logps.chosen_confident_logps = sides.chosen(reduce_tokens(weighed, current));
  }
  if (needs.limits) {
    const at::Tensor limited = limited_logratios(current, reference_tokens);
    logps.chosen_limited_logratios = sides.chosen(limited);
    if (needs.rejected) logps.rejected_limited_logratios = sides.rejected(limited);
  }
  if (needs.prompt) set_prompt_logps(logps, part.rows);
  if (needs.seq_kl) {
    const auto kl = sequence_kl(*policy, *reference->policy(), batch);
    logps.chosen_seq_kl = sides.chosen(kl);
    logps.rejected_seq_kl = sides.rejected(kl);
  }
}

Measured Trainer::Impl::measure(const Part& part, const StepRows& step_rows, std::int64_t step,
                                detail::StepMetrics& metrics) {
  const auto rows = std::ssize(part.rows);
  const Sides sides{rows, needs.rejected};
  const auto batch = make_pair_batch(part.rows, needs.rejected, needs.gold).to(policy->device());
  const auto current = policy_logps(batch, {.entropy = true,
                                            .mean_logit = true,
                                            .is_top1 = true,
                                            .log_sum_p_squared = needs.log_sum_p_squared});
  const at::Tensor before = tokens_of_reference(batch);
  PairLogps logps;
  set_policy_logps(logps, part, batch, current, before);
  if (needs.log_sum_p_squared) {
    const auto sums = reduce_tokens(current.by_products.log_sum_p_squared, current);
    logps.chosen_log_sum_p_squared = sides.chosen(sums);
    logps.rejected_log_sum_p_squared = sides.rejected(sums);
  }
  if (needs.reference) {
    const at::NoGradGuard no_grad;
    const at::Tensor sums = sums_of_reference(batch, current, before);
    logps.ref_chosen_logps = sides.chosen(sums);
    if (needs.rejected) logps.ref_rejected_logps = sides.rejected(sums);
    if (needs.head_logps) {
      const auto heads = reduce_tokens(before, current, head_of(batch, rows));
      logps.ref_chosen_head_logps = sides.chosen(heads);
      logps.ref_rejected_head_logps = sides.rejected(heads);
    }
  }
  if (needs.kl_logps) {
    const at::NoGradGuard no_grad;
    const auto others = mismatched(part, step_rows);
    const SequenceLogps of_others = policy_logps(others);
    const at::Tensor tokens = tokens_of_reference(others);
    logps.kl_logps = of_others.logps;
    logps.ref_kl_logps = sums_of_reference(others, of_others, tokens);
    if (needs.limits) logps.kl_limited_logratios = limited_logratios(of_others, tokens);
  }
  for (const ColumnInput& input : kColumnInputs) {
    if (needs.*input.needed) {
      logps.*input.value = column_of(part.rows, input.column, logps.chosen_logps);
    }
  }
  if (needs.sample_source != SampleSource::kNone) set_samples(logps, part, step, metrics);
  const StepCounts counts = count_tokens(part.rows);
  if (needs.labels) {
    add_label_token_metrics(current, logps.labels, counts, metrics);
  } else {
    add_token_metrics(current, counts, needs.rejected, metrics);
  }
  return {std::move(logps), before};
}

PairLogps Trainer::Impl::measure_differentiable(const Part& part, std::int64_t step,
                                                const at::Tensor& reference_tokens) {
  const auto batch = make_pair_batch(part.rows, needs.rejected, needs.gold).to(policy->device());
  PairLogps logps;
  set_policy_logps(logps, part, batch, policy_logps(batch), reference_tokens);
  if (needs.sample_source != SampleSource::kNone) {
    logps.sample_logps = policy_logps(draw_samples(part, step)).logps;
  }
  return logps;
}

void Trainer::Impl::set_samples(PairLogps& logps, const Part& part, std::int64_t step,
                                detail::StepMetrics& metrics) {
  const auto samples = draw_samples(part, step);
  const auto sampled = policy_logps(samples);
  logps.samples_per_prompt = needs.samples_per_prompt;
  logps.sample_logps = sampled.logps;
  logps.sample_lens = sampled.lens.to(sampled.logps.options());
  if (!reference) return;
  const at::NoGradGuard no_grad;
  logps.ref_sample_logps = reference_logps_of_samples(samples);
  // Samples of the reference would estimate minus the KL in the other direction.
  if (needs.sample_source == SampleSource::kPolicy) {
    metrics.add_mean("kl", (logps.sample_logps.detach() - logps.ref_sample_logps).sum(),
                     static_cast<double>(samples.sequences()));
  }
}

LossOutput Trainer::Impl::evaluate(const PairLogps& logps, const std::vector<TokenPair>& rows,
                                   double share, detail::StepMetrics& metrics) {
  auto out = loss.forward(logps);
  if (!out.loss.defined() || out.loss.numel() != 1) {
    throw ShapeError(
        fmt::format("{}: expected a loss of one number, got {}", loss.info().name,
                    out.loss.defined() ? fmt::format("{}", out.loss.numel()) : "none"));
  }
  metrics.add_total("loss", share * out.loss);
  if (out.terms.size() > 1) {
    for (const auto& term : out.terms) metrics.add_total("loss/" + term.name, share * term.value);
  }
  // That of the policy's own samples is no estimate by other rows.
  if (out.kl.defined() && needs.sample_source != SampleSource::kPolicy) {
    metrics.add_total("kl", share * out.kl);
  }
  if (needs.labels) {
    add_label_metrics(logps, out, rows, metrics);
  } else {
    add_pair_metrics(logps, out, static_cast<double>(rows.size()), metrics);
  }
  return out;
}

void Trainer::Impl::accumulate_whole(const std::vector<Part>& parts, const StepRows& step_rows,
                                     const StepTotals& totals, bool train, std::int64_t step,
                                     double share, detail::StepMetrics& metrics) {
  std::vector<at::Tensor> kept_tokens;
  PairLogps whole;
  {
    const at::NoGradGuard no_grad;
    std::vector<PairLogps> measured;
    for (const Part& part : parts) {
      auto [logps, tokens] = measure(part, step_rows, step, metrics);
      measured.push_back(std::move(logps));
      kept_tokens.push_back(std::move(tokens));
    }
    whole = joined(measured, needs);
  }
  whole.totals = totals;
  whole.running = running;
  whole.running.is_frozen = !train;
  for (const auto& field : kPairFields<at::Tensor>) {
    at::Tensor& value = whole.*field.value;
    if (train && field.gradient && value.defined()) value.requires_grad_();
  }
  const auto out = evaluate(whole, step_rows.rows, share, metrics);
  next_running = out.running;
  if (!train) return;
  check_gradient(out);
  out.loss.backward();
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const PairLogps again = measure_differentiable(part, step, kept_tokens[i]);
    at::Tensor sum;
    for (const auto& field : kPairFields<at::Tensor>) {
      const at::Tensor& value = again.*field.value;
      const at::Tensor& leaf = whole.*field.value;
      if (!field.gradient || !value.defined() || !leaf.defined() || !leaf.grad().defined()) {
        continue;
      }
      const auto each = field.per_sample ? needs.samples_per_prompt : 1;
      const auto addend = (leaf.grad().narrow(0, part.place * each, value.size(0)) * value).sum();
      sum = sum.defined() ? sum + addend : addend;
    }
    sum.backward();
  }
}

void Trainer::Impl::check_gradient(const LossOutput& out) const {
  if (out.loss.requires_grad()) return;
  throw ConfigError(
      fmt::format("{}: expected a loss that depends on the policy's log-probs, got one without a "
                  "gradient",
                  loss.info().name));
}

std::vector<Part> Trainer::Impl::parts_of(const std::vector<TokenPair>& rows,
                                          std::int64_t number) const {
  std::vector<Part> parts;
  std::int64_t place = 0;
  for (auto& part : micro_batches(rows, options)) {
    const auto size = std::ssize(part);
    parts.push_back({std::move(part), place, number + place});
    place += size;
  }
  return parts;
}

void Trainer::Impl::accumulate_step(const std::vector<TokenPair>& pairs, bool train,
                                    std::int64_t step, double share, std::int64_t number,
                                    detail::StepMetrics& metrics) {
  const StepRows step_rows = bucketed(pairs);
  const auto counts = count_tokens(pairs);
  const StepTotals totals{.pairs = static_cast<double>(pairs.size()),
                          .chosen_tokens = static_cast<double>(counts.chosen),
                          .rejected_tokens = static_cast<double>(counts.rejected),
                          .gold_tokens = static_cast<double>(counts.gold),
                          .prompt_tokens = static_cast<double>(counts.predicted_prompt)};
  const std::vector<Part> parts = parts_of(step_rows.rows, number);
  next_running = running;
  if (needs.whole_step && parts.size() > 1) {
    accumulate_whole(parts, step_rows, totals, train, step, share, metrics);
    return;
  }
  for (const Part& part : parts) {
    PairLogps logps = measure(part, step_rows, step, metrics).logps;
    logps.totals = totals;
    logps.running = running;
    logps.running.is_frozen = !train;
    const auto out = evaluate(logps, part.rows, share, metrics);
    if (needs.running_mean) next_running = out.running;
    if (!train) continue;
    check_gradient(out);
    out.loss.backward();
  }
}

detail::StepMetrics Trainer::Impl::accumulate(const std::vector<TokenPair>& pairs, bool train,
                                              std::int64_t step) {
  check(pairs);
  const at::AutoGradMode grad_mode(train);
  detail::StepMetrics metrics;
  const std::int64_t size = options.evaluation_batch_size;
  if (train || !needs.whole_step || size == 0) {
    accumulate_step(pairs, train, step, /*share=*/1, /*number=*/0, metrics);
  } else {
    std::int64_t number = 0;
    for (const auto& part : cut_by_place(pairs, size)) {
      accumulate_step(part, train, step,
                      static_cast<double>(part.size()) / static_cast<double>(pairs.size()), number,
                      metrics);
      number += std::ssize(part);
    }
  }
  const auto counts = count_tokens(pairs);
  add_lengths(pairs, counts, metrics);
  auto tokens = counts.prompt + counts.all_chosen;
  if (needs.rejected) tokens += counts.prompt + counts.all_rejected;
  if (needs.gold) tokens += counts.prompt + counts.all_gold;
  metrics.set("num_tokens", static_cast<double>(tokens_seen + (train ? tokens : 0)));
  return metrics;
}

void Trainer::Impl::add_lengths(const std::vector<TokenPair>& rows, const StepCounts& counts,
                                detail::StepMetrics& metrics) const {
  const auto add = [&](std::string_view name, std::int64_t tokens, std::ptrdiff_t of_rows) {
    if (of_rows == 0) return;
    metrics.set(name, static_cast<double>(tokens) / static_cast<double>(of_rows));
  };
  if (needs.labels) {
    const auto desirable = std::count_if(rows.begin(), rows.end(), is_desirable);
    add("lengths/chosen", counts.desirable, desirable);
    add("lengths/rejected", counts.chosen - counts.desirable, std::ssize(rows) - desirable);
    return;
  }
  add("lengths/chosen", counts.chosen, std::ssize(rows));
  if (needs.rejected) add("lengths/rejected", counts.rejected, std::ssize(rows));
}

detail::StepMetrics Trainer::Impl::gradients(const std::vector<TokenPair>& pairs) {
  if (optimizer.empty()) {
    throw ConfigError(
        "trainer: expected a policy with parameters that require a gradient, got "
        "none");
  }
  optimizer.zero_grad();
  auto metrics = accumulate(pairs, /*train=*/true, steps_done);
  metrics.set("grad_norm", optimizer.grad_norm());
  return metrics;
}

detail::StepMetrics Trainer::Impl::gradients_or_report(const std::vector<TokenPair>& pairs) {
  try {
    return gradients(pairs);
  } catch (const NonFiniteError&) {
    constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
    report_non_finite(pairs, steps_done + 1, kUnknown, kUnknown, {});
    throw;
  }
}

PairLogps Trainer::Impl::plain_logps(const Part& part) {
  const auto rows = std::ssize(part.rows);
  const Sides sides{rows, needs.rejected};
  const auto batch = make_pair_batch(part.rows, needs.rejected, needs.gold).to(policy->device());
  const SequenceLogps current = policy_logps(batch);
  const at::Tensor before = tokens_of_reference(batch);
  PairLogps logps;
  set_policy_logps(logps, part, batch, current, before);
  if (needs.reference) {
    const at::Tensor sums = sums_of_reference(batch, current, before);
    logps.ref_chosen_logps = sides.chosen(sums);
    if (needs.rejected) logps.ref_rejected_logps = sides.rejected(sums);
  }
  return logps;
}

void Trainer::Impl::report_non_finite(const std::vector<TokenPair>& pairs, std::int64_t step,
                                      double loss_value, double grad_norm, const Metrics& metrics) {
  if (!options.on_non_finite) return;
  const at::NoGradGuard no_grad;
  NonFiniteStep report{
      .step = step, .loss = loss_value, .grad_norm = grad_norm, .rows = pairs, .metrics = metrics};
  for (const auto& [name, value] : policy->named_parameters()) {
    if (report.weight.empty() && !is_finite(value)) report.weight = name;
    if (report.gradient.empty() && !is_finite(value.grad())) report.gradient = name;
  }
  std::vector<PairLogps> measured;
  for (const Part& part : parts_of(pairs)) measured.push_back(plain_logps(part));
  std::vector<bool> is_bad(pairs.size());
  for (const auto& field : kPairFields<at::Tensor>) {
    const bool is_logp = field.kind == PairField<at::Tensor>::Kind::kLogps && !field.per_sample;
    if (!is_logp || !(measured.front().*field.value).defined()) continue;
    std::vector<at::Tensor> parts;
    for (const PairLogps& part : measured) parts.push_back(part.*field.value);
    std::vector<double> values = numbers_of(at::cat(parts));
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i])) is_bad[i] = true;
    }
    report.logps.emplace_back(field.name, std::move(values));
  }
  for (std::size_t i = 0; i < is_bad.size(); ++i) {
    if (is_bad[i]) report.offending.push_back(static_cast<std::int64_t>(i));
  }
  options.on_non_finite(report);
}

void Trainer::Impl::visit_state(detail::StateVisitor& visitor) {
  visitor.integer("trainer.steps_done", steps_done);
  visitor.integer("trainer.tokens_seen", tokens_seen);
  visitor.integer("trainer.skipped_in_a_row", skipped_in_a_row);
  LossState state = loss_state();
  visitor.real("loss.mean", state.mean);
  visitor.real("loss.count", state.count);
  set_loss_state(state);
  detail::PartOfState of_optimizer("optimizer.", visitor);
  optimizer.visit_state(of_optimizer);
  if (!reference) return;
  for (const auto& [name, value] : reference->state()) visitor.tensor("reference." + name, value);
}

LossState Trainer::Impl::loss_state() const {
  if (running.count == 0) return {};
  return {running.mean.item<double>(), running.count};
}

void Trainer::Impl::set_loss_state(const LossState& state) {
  running = {};
  if (state.count == 0) return;
  running = {at::scalar_tensor(state.mean, at::TensorOptions(at::kDouble).device(policy->device())),
             state.count};
}

Trainer::Trainer(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference, Loss loss,
                 TrainerOptions options) {
  if (!policy) throw ConfigError("trainer: expected a policy, got null");
  impl_ = std::make_unique<Impl>(std::move(policy), std::move(reference), std::move(loss),
                                 std::move(options));
  const auto& needs = impl_->needs;
  const auto name = impl_->loss.info().name;
  if (needs.running_mean && !needs.whole_step) {
    throw ConfigError(
        fmt::format("{}: expected whole_step in the requirements of a loss with running_mean, got "
                    "false; the mean would be of the last micro-batch alone",
                    name));
  }
  if (needs.reference && !impl_->reference) {
    throw ConfigError(
        fmt::format("{}: expected a reference, got null; make_frozen_reference("
                    "policy->frozen_copy()) makes one",
                    name));
  }
  if (needs.seq_kl && impl_->reference->policy() == nullptr) {
    throw ConfigError(fmt::format(
        "{}: expected a reference with a model behind it, got one without; its loss needs the "
        "reference's whole distribution",
        name));
  }
  if (needs.sample_source == SampleSource::kNone) return;
  const SamplingOptions& sampling = checked(impl_->options.sampling, "sampling");
  if (needs.sample_source == SampleSource::kPolicy &&
      (sampling.temperature != 1 || sampling.top_k != 0 || sampling.top_p != 1)) {
    throw ConfigError(
        fmt::format("{}: expected samples of the policy itself (temperature 1, top_k 0, top_p 1), "
                    "got temperature {}, top_k {}, top_p {}; its gradient is an expectation under "
                    "the policy",
                    name, sampling.temperature, sampling.top_k, sampling.top_p));
  }
  if (needs.samples_per_prompt < 1) {
    throw ConfigError(fmt::format("{}: expected at least one fresh sample a prompt, got {}", name,
                                  needs.samples_per_prompt));
  }
  if (needs.sample_source == SampleSource::kReference &&
      (!impl_->reference || impl_->reference->policy() == nullptr)) {
    throw ConfigError(
        fmt::format("{}: expected a reference that can be sampled, got one without a "
                    "model behind it",
                    name));
  }
}

Trainer::~Trainer() = default;

Metrics Trainer::step(const std::vector<TokenPair>& pairs) {
  const auto& options = impl_->options.optimizer;
  if (options.schedule != Schedule::kConstant && impl_->options.total_steps < 1) {
    throw ConfigError(
        fmt::format("total_steps: expected the number of steps, at least 1, got {}; "
                    "only the constant schedule needs none",
                    impl_->options.total_steps));
  }
  const double learning_rate =
      learning_rate_at(options, impl_->steps_done, impl_->options.total_steps);
  const auto number = impl_->steps_done + 1;
  const auto fail_for_state = [&](const std::string& why) {
    throw_no_memory_for_state(number, options, why);
  };
  within_memory([&] { impl_->optimizer.reserve_gradients(); }, fail_for_state);
  auto sums = within_memory([&] { return impl_->gradients_or_report(pairs); },
                            [&](const std::string& why) {
                              throw_no_memory_for_rows(fmt::format("step {}", number), pairs,
                                                       impl_->options, why);
                            });
  sums.set("learning_rate", learning_rate);
  const auto metrics = sums.finish();
  impl_->step_counts = sums.counts();
  const double loss = metric(metrics, "loss");
  const double grad_norm = metric(metrics, "grad_norm");
  const bool is_usable = std::isfinite(loss) && std::isfinite(grad_norm);
  if (is_usable) {
    within_memory([&] { impl_->optimizer.reserve_state(); }, fail_for_state);
  }

  impl_->steps_done = number;
  impl_->tokens_seen = static_cast<std::int64_t>(metric(metrics, "num_tokens"));
  if (is_usable) {
    impl_->skipped_in_a_row = 0;
    impl_->running = impl_->next_running;
    impl_->optimizer.step(learning_rate, clip_factor(grad_norm, options.max_grad_norm));
    if (impl_->reference) impl_->reference->after_step(*impl_->policy, number);
    return metrics;
  }

  sums.set("skipped", 1);
  const auto skipped = sums.finish();
  impl_->report_non_finite(pairs, number, loss, grad_norm, skipped);
  impl_->optimizer.zero_grad();
  // A run that went on after such an end is told at its next step without an update.
  if (++impl_->skipped_in_a_row >= kMaxSkipped) {
    const bool bad_loss = !std::isfinite(loss);
    throw NonFiniteError(fmt::format(
        "step {}: expected a finite {}, got {}; this is step {} in a row without an update, try a "
        "lower learning rate",
        number, bad_loss ? "loss" : "gradient norm", bad_loss ? loss : grad_norm,
        impl_->skipped_in_a_row));
  }
  return skipped;
}

Metrics Trainer::evaluate(const std::vector<TokenPair>& pairs) {
  return within_memory(
      [&] { return impl_->accumulate(pairs, /*train=*/false, kEvaluation).finish(); },
      [&](const std::string& why) {
        throw_no_memory_for_rows(fmt::format("evaluation after step {}", impl_->steps_done), pairs,
                                 impl_->options, why);
      });
}

Metrics Trainer::accumulate_gradients(const std::vector<TokenPair>& pairs) {
  return impl_->gradients(pairs).finish();
}

std::vector<std::pair<std::string, at::Tensor>> Trainer::state() const {
  return detail::save_state([&](detail::StateVisitor& visitor) { impl_->visit_state(visitor); });
}

void Trainer::load_state(const std::vector<std::pair<std::string, at::Tensor>>& saved) {
  const bool has_masters = std::any_of(saved.begin(), saved.end(), [](const auto& item) {
    return item.first.starts_with("optimizer.master.");
  });
  if (impl_->optimizer.has_masters() && !has_masters) {
    throw CheckpointError(
        "trainer: expected float32 masters of bfloat16 or float16 weights, got a state without "
        "them, of a version that trained such weights themselves; start a new run whose "
        "model.path is that checkpoint");
  }
  detail::load_state([&](detail::StateVisitor& visitor) { impl_->visit_state(visitor); }, saved,
                     "trainer");
}

void Trainer::save_policy(const std::string& directory) const {
  const detail::WideWeights weights(impl_->optimizer, impl_->policy->named_parameters());
  impl_->policy->save(directory);
}

LossState Trainer::loss_state() const { return impl_->loss_state(); }

void Trainer::set_loss_state(const LossState& state) { impl_->set_loss_state(state); }

Metrics Trainer::step_counts() const { return impl_->step_counts; }

std::int64_t Trainer::steps_done() const { return impl_->steps_done; }

std::int64_t Trainer::tokens_seen() const { return impl_->tokens_seen; }

Policy& Trainer::policy() { return *impl_->policy; }

}  // namespace prefopt
