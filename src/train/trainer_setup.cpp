// SPDX-License-Identifier: Apache-2.0
// The checks, the construction and the state of a Trainer.

#include <ATen/ops/scalar_tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "policy/logit_rules.h"
#include "policy/token_range.h"
#include "prefopt/error.h"
#include "prefopt/policy/reward_policy.h"
#include "train/trainer_impl.h"

namespace prefopt {

void Trainer::Impl::check_rows(const std::vector<TokenRow>& rows) const {
  if (rows.empty()) throw ShapeError("trainer: expected at least one pair, got none");
  if (needs.has(Input::kl_logps) && rows.size() < 2) {
    throw ShapeError(
        fmt::format("{}: expected at least 2 rows a step, got 1; its KL is estimated on the "
                    "completions of other rows",
                    loss.info().name));
  }
  detail::check_token_range(rows, policy->vocab_size(), "trainer");
}

void Trainer::Impl::check_gradient(const LossOutput& out) const {
  if (out.loss.requires_grad()) return;
  throw ConfigError(
      fmt::format("{}: expected a loss that depends on the policy's log-probs, got one without a "
                  "gradient",
                  loss.info().name));
}

void Trainer::Impl::check_needs() const {
  const std::string name = loss.info().name;
  if (ranks->size() > 1) {
    throw ConfigError(fmt::format(
        "trainer: expected ranks of one process, got {}; several do not train together yet",
        ranks->size()));
  }
  if (needs.running_mean && !needs.whole_step) {
    throw ConfigError(
        fmt::format("{}: expected whole_step in the requirements of a loss with running_mean, got "
                    "false; the mean would be of the last micro-batch alone",
                    name));
  }
  const bool has_rewards = dynamic_cast<const RewardPolicy*>(policy.get()) != nullptr;
  if (needs.of_rewards != has_rewards) {
    throw ConfigError(fmt::format(
        "{}: expected {}, got {}", name,
        needs.of_rewards ? "a reward model (RewardPolicy)" : "a policy with log-probs",
        has_rewards ? "a reward model; the loss reward_bt trains one" : "a policy with log-probs"));
  }
  if (needs.reference() && !reference) {
    throw ConfigError(
        fmt::format("{}: expected a reference, got null; make_frozen_reference("
                    "policy->frozen_copy()) makes one",
                    name));
  }
  if (needs.has(Input::chosen_seq_kl) && reference->policy() == nullptr) {
    throw ConfigError(fmt::format(
        "{}: expected a reference with a model behind it, got one without; its loss needs the "
        "reference's whole distribution",
        name));
  }
  const bool compares_prompts = needs.has(Input::kl_logps) || needs.has(Input::labels) ||
                                needs.sample_source != SampleSource::kNone;
  if (compares_prompts && reference && !reference->is_normalized()) {
    throw ConfigError(
        fmt::format("{}: expected a reference with the log-probs of a distribution, got a weighted "
                    "sum of several; its loss needs more than differences within a prompt",
                    name));
  }
  if (needs.sample_source != SampleSource::kNone) check_sampling();
}

void Trainer::Impl::check_sampling() const {
  const std::string name = loss.info().name;
  const SamplingOptions& sampling = checked(options.sampling, "sampling");
  if (needs.sample_source == SampleSource::kPolicy) {
    detail::check_own_distribution(sampling, name,
                                   "; its gradient is an expectation under the policy");
  }
  if (needs.samples_per_prompt < 1) {
    throw ConfigError(fmt::format("{}: expected at least one fresh sample a prompt, got {}", name,
                                  needs.samples_per_prompt));
  }
  if (needs.sample_source == SampleSource::kReference &&
      (!reference || reference->policy() == nullptr)) {
    throw ConfigError(
        fmt::format("{}: expected a reference that can be sampled, got one without a "
                    "model behind it",
                    name));
  }
}

namespace {

TrainerOptions checked_options(TrainerOptions options) {
  checked(options.optimizer, "optimizer");
  const auto check = [](const char* name, std::int64_t value, const char* meaning_of_0) {
    if (value >= 0) return;
    throw ConfigError(
        fmt::format("{}: expected 0 or more, got {}; 0 means {}", name, value, meaning_of_0));
  };
  check("micro_batch_size", options.micro_batch_size, "the whole step at once");
  check("evaluation_batch_size", options.evaluation_batch_size, "all rows at once");
  check("micro_batch_tokens", options.micro_batch_tokens, "no limit");
  return options;
}

}  // namespace

// Construction and state.

Trainer::Impl::Impl(std::shared_ptr<Policy> policy_, std::shared_ptr<Reference> reference_,
                    Loss loss_, TrainerOptions options_)
    : policy(std::move(policy_)),
      reference(std::move(reference_)),
      loss(std::move(loss_)),
      needs(loss.requirements()),
      options(checked_options(std::move(options_))),
      ranks(options.ranks ? options.ranks : one_process()),
      inputs(policy, reference, needs, options),
      updater(policy, reference, options, ranks) {}

Trainer::Trainer(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference, Loss loss,
                 TrainerOptions options) {
  if (!policy) throw ConfigError("trainer: expected a policy, got null");
  impl_ = std::make_unique<Impl>(std::move(policy), std::move(reference), std::move(loss),
                                 std::move(options));
  impl_->check_needs();
}

Trainer::~Trainer() = default;

void Trainer::Impl::visit_state(StateVisitor& visitor) {
  updater.visit_steps(visitor);
  visitor.integer("trainer.tokens_seen", tokens_seen);
  updater.visit_skipped(visitor);
  LossState state = loss_state();
  visitor.real("loss.mean", state.mean);
  visitor.real("loss.count", state.count);
  set_loss_state(state);
  detail::PartOfState of_optimizer("optimizer.", visitor);
  updater.optimizer().visit_state(of_optimizer);
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

std::vector<std::pair<std::string, at::Tensor>> Trainer::state() const {
  return detail::save_state([&](StateVisitor& visitor) { impl_->visit_state(visitor); });
}

void Trainer::load_state(const std::vector<std::pair<std::string, at::Tensor>>& saved) {
  const bool has_masters = std::any_of(saved.begin(), saved.end(), [](const auto& item) {
    return item.first.starts_with("optimizer.master.");
  });
  if (impl_->updater.optimizer().has_masters() && !has_masters) {
    throw CheckpointError(
        "trainer: expected float32 masters of bfloat16 or float16 weights, got a state without "
        "them, of a version that trained such weights themselves; start a new run whose "
        "model.path is that checkpoint");
  }
  detail::load_state([&](StateVisitor& visitor) { impl_->visit_state(visitor); }, saved, "trainer");
}

void Trainer::save_policy(const std::string& directory) const {
  const detail::WideWeights weights(impl_->updater.optimizer(), impl_->policy->named_parameters());
  impl_->policy->save(directory);
}

LossState Trainer::loss_state() const { return impl_->loss_state(); }

void Trainer::set_loss_state(const LossState& state) { impl_->set_loss_state(state); }

Metrics Trainer::step_counts() const { return impl_->step_counts; }

std::int64_t Trainer::steps_done() const { return impl_->updater.steps_done(); }

std::int64_t Trainer::tokens_seen() const { return impl_->tokens_seen; }

Policy& Trainer::policy() { return *impl_->policy; }

}  // namespace prefopt
