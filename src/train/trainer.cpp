// SPDX-License-Identifier: Apache-2.0
#include "prefopt/train/trainer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/gt.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/random.h"
#include "prefopt/error.h"
#include "prefopt/logps/sequence_logps.h"
#include "train/metrics.h"
#include "train/optimizer.h"
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

/// Token counts of a whole step, known before any forward.
struct StepCounts {
  std::int64_t prompt = 0;
  std::int64_t chosen = 0;
  std::int64_t rejected = 0;
};

StepCounts count_tokens(const std::vector<TokenPair>& pairs) {
  StepCounts counts;
  for (const auto& pair : pairs) {
    counts.prompt += std::ssize(pair.prompt);
    counts.chosen += std::ssize(pair.chosen);
    counts.rejected += std::ssize(pair.rejected);
  }
  return counts;
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
  if (options.micro_batch_tokens < 0) {
    throw ConfigError(
        fmt::format("micro_batch_tokens: expected 0 or more, got {}; 0 means no limit",
                    options.micro_batch_tokens));
  }
  return options;
}

/// What padding makes of a pair.
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

}  // namespace

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
  std::vector<TokenPair> bucketed(std::vector<TokenPair> pairs) const;
  /// Fresh completions of the prompts of `part`, whose first pair is number `first` of the step.
  TokenBatch draw_samples(const std::vector<TokenPair>& part, std::int64_t first,
                          std::int64_t step);
  at::Tensor reference_logps_of_samples(const TokenBatch& samples);
  LossOutput forward(const std::vector<TokenPair>& part, std::int64_t first, std::int64_t step,
                     const StepTotals& totals, detail::StepMetrics& metrics);
  /// Sums over the micro-batches; `train` adds the gradients into the parameters.
  detail::StepMetrics accumulate(const std::vector<TokenPair>& pairs, bool train,
                                 std::int64_t step);
  detail::StepMetrics gradients(const std::vector<TokenPair>& pairs);

  std::shared_ptr<Policy> policy;
  std::shared_ptr<Reference> reference;
  Loss loss;
  LossRequirements needs;
  TrainerOptions options;
  detail::Optimizer optimizer;
  std::int64_t steps_done = 0;
  std::int64_t tokens_seen = 0;
  std::int64_t skipped_in_a_row = 0;
};

void Trainer::Impl::check(const std::vector<TokenPair>& pairs) const {
  if (pairs.empty()) throw ShapeError("trainer: expected at least one pair, got none");
  detail::check_token_range(pairs, policy->vocab_size(), "trainer");
}

std::vector<TokenPair> Trainer::Impl::bucketed(std::vector<TokenPair> pairs) const {
  if (!policy->packs() && needs.sample_source == SampleSource::kNone) {
    std::stable_sort(pairs.begin(), pairs.end(), [](const TokenPair& a, const TokenPair& b) {
      return width_of(a) < width_of(b);
    });
  }
  return pairs;
}

TokenBatch Trainer::Impl::draw_samples(const std::vector<TokenPair>& part, std::int64_t first,
                                       std::int64_t step) {
  const at::NoGradGuard no_grad;
  std::vector<std::vector<std::int64_t>> prompts;
  for (const auto& pair : part) {
    prompts.insert(prompts.end(), static_cast<std::size_t>(needs.samples_per_prompt), pair.prompt);
  }
  auto sampling = options.sampling;
  sampling.seed = seed_of_step(options.sampling.seed, step);
  sampling.first_index = first * needs.samples_per_prompt;
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

LossOutput Trainer::Impl::forward(const std::vector<TokenPair>& part, std::int64_t first,
                                  std::int64_t step, const StepTotals& totals,
                                  detail::StepMetrics& metrics) {
  const auto pairs = std::ssize(part);
  const auto n = static_cast<double>(pairs);
  const auto counts = count_tokens(part);
  const auto chosen_of = [&](const at::Tensor& all) { return all.narrow(0, 0, pairs); };
  const auto rejected_of = [&](const at::Tensor& all) { return all.narrow(0, pairs, pairs); };

  const auto batch = make_pair_batch(part, needs.rejected).to(policy->device());
  const auto current =
      sequence_logps(*policy, batch,
                     {.by_products = {.entropy = true, .mean_logit = true, .is_top1 = true},
                      .reduction = {},
                      .budget_bytes = options.head_budget_bytes});
  const auto lens = current.lens.to(current.logps.options());

  PairLogps logps;
  logps.totals = totals;
  logps.chosen_logps = chosen_of(current.logps);
  logps.chosen_lens = chosen_of(lens);
  if (needs.rejected) {
    logps.rejected_logps = rejected_of(current.logps);
    logps.rejected_lens = rejected_of(lens);
  }
  if (needs.reference) {
    const at::NoGradGuard no_grad;
    const auto before = reference->sequence_logps(batch);
    logps.ref_chosen_logps = chosen_of(before);
    if (needs.rejected) logps.ref_rejected_logps = rejected_of(before);
  }
  if (needs.sample_source != SampleSource::kNone) {
    const auto samples = draw_samples(part, first, step);
    const auto sampled = sequence_logps(
        *policy, samples,
        {.by_products = {}, .reduction = {}, .budget_bytes = options.head_budget_bytes});
    logps.samples_per_prompt = needs.samples_per_prompt;
    logps.sample_logps = sampled.logps;
    logps.sample_lens = sampled.lens.to(sampled.logps.options());
    if (reference) {
      const at::NoGradGuard no_grad;
      logps.ref_sample_logps = reference_logps_of_samples(samples);
      // Samples of the reference would estimate minus the KL in the other direction.
      if (needs.sample_source == SampleSource::kPolicy) {
        metrics.add_mean("kl", (logps.sample_logps.detach() - logps.ref_sample_logps).sum(),
                         static_cast<double>(samples.sequences()));
      }
    }
  }

  auto out = loss.forward(logps);
  if (!out.loss.defined() || out.loss.numel() != 1) {
    throw ShapeError(
        fmt::format("{}: expected a loss of one number, got {}", loss.info().name,
                    out.loss.defined() ? fmt::format("{}", out.loss.numel()) : "none"));
  }

  metrics.add_total("loss", out.loss);
  if (out.terms.size() > 1) {
    for (const auto& term : out.terms) metrics.add_total("loss/" + term.name, term.value);
  }
  const auto add_mean_of_pairs = [&](std::string_view name, const at::Tensor& values) {
    if (values.defined()) metrics.add_mean(name, values.sum(), n);
  };
  add_mean_of_pairs("rewards/chosen", out.chosen_rewards);
  add_mean_of_pairs("rewards/rejected", out.rejected_rewards);
  if (out.chosen_rewards.defined() && out.rejected_rewards.defined()) {
    add_mean_of_pairs("rewards/accuracies", at::gt(out.chosen_rewards, out.rejected_rewards));
  }
  add_mean_of_pairs("rewards/margins", out.margins);
  add_mean_of_pairs("logps/chosen", logps.chosen_logps);
  add_mean_of_pairs("logps/rejected", logps.rejected_logps);
  add_mean_of_pairs("logps/ref_chosen", logps.ref_chosen_logps);
  add_mean_of_pairs("logps/ref_rejected", logps.ref_rejected_logps);

  // Entropy over all completion tokens, accuracy over those of the chosen: TRL's definitions.
  const auto& by = current.by_products;
  const auto rows = by.entropy.size(0);
  const auto chosen_rows = static_cast<double>(counts.chosen);
  metrics.add_mean("entropy", by.entropy.sum(at::kDouble), static_cast<double>(rows));
  metrics.add_mean("logits/chosen", by.mean_logit.narrow(0, 0, counts.chosen).sum(at::kDouble),
                   chosen_rows);
  metrics.add_mean("mean_token_accuracy", by.is_top1.narrow(0, 0, counts.chosen).sum(),
                   chosen_rows);
  if (needs.rejected) {
    metrics.add_mean("logits/rejected",
                     by.mean_logit.narrow(0, counts.chosen, counts.rejected).sum(at::kDouble),
                     static_cast<double>(counts.rejected));
  }
  return out;
}

detail::StepMetrics Trainer::Impl::accumulate(const std::vector<TokenPair>& pairs, bool train,
                                              std::int64_t step) {
  check(pairs);
  const at::AutoGradMode grad_mode(train);
  const auto counts = count_tokens(pairs);
  const auto n = static_cast<double>(pairs.size());
  const StepTotals totals{.pairs = n,
                          .chosen_tokens = static_cast<double>(counts.chosen),
                          .rejected_tokens = static_cast<double>(counts.rejected)};

  detail::StepMetrics metrics;
  std::int64_t first = 0;
  for (const auto& part : micro_batches(bucketed(pairs), options)) {
    const auto out = forward(part, first, step, totals, metrics);
    first += std::ssize(part);
    if (!train) continue;
    if (!out.loss.requires_grad()) {
      throw ConfigError(
          fmt::format("{}: expected a loss that depends on the policy's log-probs, "
                      "got one without a gradient",
                      loss.info().name));
    }
    out.loss.backward();
  }

  metrics.set("lengths/chosen", totals.chosen_tokens / n);
  auto tokens = counts.prompt + counts.chosen;
  if (needs.rejected) {
    metrics.set("lengths/rejected", static_cast<double>(counts.rejected) / n);
    tokens += counts.prompt + counts.rejected;
  }
  metrics.set("num_tokens", static_cast<double>(tokens_seen + (train ? tokens : 0)));
  return metrics;
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

Trainer::Trainer(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference, Loss loss,
                 TrainerOptions options) {
  if (!policy) throw ConfigError("trainer: expected a policy, got null");
  impl_ = std::make_unique<Impl>(std::move(policy), std::move(reference), std::move(loss),
                                 std::move(options));
  const auto& needs = impl_->needs;
  const auto name = impl_->loss.info().name;
  if (needs.reference && !impl_->reference) {
    throw ConfigError(
        fmt::format("{}: expected a reference, got null; make_frozen_reference("
                    "policy->frozen_copy()) makes one",
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
  auto sums = impl_->gradients(pairs);
  sums.set("learning_rate", learning_rate);
  const auto metrics = sums.finish();
  const auto number = ++impl_->steps_done;
  impl_->tokens_seen = static_cast<std::int64_t>(metric(metrics, "num_tokens"));

  const double loss = metric(metrics, "loss");
  const double grad_norm = metric(metrics, "grad_norm");
  if (std::isfinite(loss) && std::isfinite(grad_norm)) {
    impl_->skipped_in_a_row = 0;
    impl_->optimizer.step(learning_rate, clip_factor(grad_norm, options.max_grad_norm));
    return metrics;
  }

  impl_->optimizer.zero_grad();
  if (++impl_->skipped_in_a_row == kMaxSkipped) {
    const bool bad_loss = !std::isfinite(loss);
    const double value = bad_loss ? loss : grad_norm;
    throw NonFiniteError(fmt::format(
        "step {}: expected a finite {}, got {}; this is step {} in a row without an update, try a "
        "lower learning rate",
        number, bad_loss ? "loss" : "gradient norm",
        std::isnan(value) ? std::abs(value) : value,  // the sign of a NaN says nothing
        kMaxSkipped));
  }
  sums.set("skipped", 1);
  return sums.finish();
}

Metrics Trainer::evaluate(const std::vector<TokenPair>& pairs) {
  return impl_->accumulate(pairs, /*train=*/false, kEvaluation).finish();
}

Metrics Trainer::accumulate_gradients(const std::vector<TokenPair>& pairs) {
  return impl_->gradients(pairs).finish();
}

std::int64_t Trainer::steps_done() const { return impl_->steps_done; }

Policy& Trainer::policy() { return *impl_->policy; }

}  // namespace prefopt
