// SPDX-License-Identifier: Apache-2.0
// The checks, the construction and the state of a Trainer.

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "dist/gathering_ranks.h"
#include "math/sliced_weight.h"
#include "math/wide_gradient.h"
#include "policy/token_range.h"
#include "prefopt/error.h"
#include "train/trainer_impl.h"

namespace prefopt {

void Trainer::Impl::check_rows(const std::vector<TokenRow>& rows) const {
  if (rows.empty()) throw ShapeError("trainer: expected at least one pair, got none");
  loss->check_rows(rows);
  detail::check_token_range(rows, policy->vocab_size(), "trainer");
}

void Trainer::Impl::check() const { loss->check(); }

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

Trainer::Impl::Impl(detail::StepParts parts, std::unique_ptr<detail::StepLoss> loss_)
    : policy(parts.policy),
      reference(parts.reference),
      options(std::move(parts.options)),
      ranks(std::move(parts.ranks)),
      loss(std::move(loss_)),
      updater(policy, reference, options, ranks),
      gradients(ranks, updater.trained()) {
  check();
}

namespace {

detail::StepParts step_parts(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference,
                             TrainerOptions options) {
  if (!policy) throw ConfigError("trainer: expected a policy, got null");
  const auto ranks = options.ranks ? options.ranks : one_process();
  if (detail::slices_weights(*ranks)) {
    policy->keep_slices(ranks);
    if (reference && reference->policy() != nullptr) reference->policy()->keep_slices(ranks);
    if (options.value_model) options.value_model->keep_slices(ranks);
  }
  return {.policy = std::move(policy),
          .reference = std::move(reference),
          .options = checked_options(std::move(options)),
          .ranks = ranks};
}

}  // namespace

Trainer::Trainer(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference, Loss loss,
                 TrainerOptions options) {
  auto parts = step_parts(std::move(policy), std::move(reference), std::move(options));
  auto step_loss = detail::make_pair_step_loss(parts, std::move(loss));
  impl_ = std::make_unique<Impl>(std::move(parts), std::move(step_loss));
}

Trainer::Trainer(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference,
                 TokenObjective objective, TrainerOptions options) {
  auto parts = step_parts(std::move(policy), std::move(reference), std::move(options));
  auto step_loss = detail::make_rollout_step_loss(parts, std::move(objective));
  impl_ = std::make_unique<Impl>(std::move(parts), std::move(step_loss));
}

Trainer::Trainer(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference,
                 TokenLoss loss, TrainerOptions options) {
  auto parts = step_parts(std::move(policy), std::move(reference), std::move(options));
  auto step_loss = detail::make_token_step_loss(parts, std::move(loss));
  impl_ = std::make_unique<Impl>(std::move(parts), std::move(step_loss));
}

Trainer::~Trainer() = default;

void Trainer::Impl::visit_state(StateVisitor& visitor) {
  updater.visit_steps(visitor);
  visitor.integer("trainer.tokens_seen", tokens_seen);
  updater.visit_skipped(visitor);
  LossState state = loss->state();
  visitor.real("loss.mean", state.mean);
  visitor.real("loss.count", state.count);
  loss->set_state(state);
  detail::PartOfState of_optimizer("optimizer.", visitor);
  updater.optimizer().visit_state(of_optimizer);
  if (auto* const of_values = updater.value_optimizer()) {
    detail::PartOfState of_value("value_optimizer.", visitor);
    of_values->visit_state(of_value);
  }
  if (!reference) return;
  detail::HeldWeights held;  // until the next layer is
  for (const auto& [name, value] : reference->state()) {
    held = detail::HeldWeights(value);
    const at::Tensor all = detail::whole(value);
    visitor.tensor("reference." + name, all);
    if (visitor.is_loading() && detail::is_sliced(value)) detail::assign(value, all);
  }
}

std::vector<std::pair<std::string, at::Tensor>> Trainer::state() const {
  return detail::save_state([&](StateVisitor& visitor) { impl_->visit_state(visitor); });
}

std::vector<std::pair<std::string, at::Tensor>> Trainer::gather_state() const {
  if (impl_->ranks->rank() == 0) return state();
  if (impl_->updater.optimizer().is_sharded()) {
    detail::send_state([&](StateVisitor& visitor) { impl_->visit_state(visitor); });
  }
  return {};
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

namespace {

using MasterList = std::vector<detail::Optimizer::Master>;

/// Returns the masters of an optimizer in a state that has them under `prefix`.
MasterList masters_in(const detail::NamedTensors& state, const std::string& prefix,
                      detail::RankOptimizer& optimizer) {
  MasterList masters;
  for (const auto& [whole, own] : optimizer.trained()) {
    if (!whole->has_master) continue;
    const std::string name = prefix + "master." + whole->name;
    const auto found = std::find_if(state.begin(), state.end(),
                                    [&](const auto& item) { return item.first == name; });
    if (found == state.end()) {
      throw CheckpointError(
          fmt::format("trainer: expected a gathered state with tensor '{}', got none", name));
    }
    masters.push_back({whole->value, found->second});
  }
  return masters;
}

void write_wide(const Policy& policy, const MasterList& masters, const std::string& directory) {
  const detail::WideWeights weights(masters, policy.named_parameters());
  policy.save(directory);
}

}  // namespace

void Trainer::save_policy(const std::string& directory) const {
  const auto save = [&](const Policy& policy, detail::RankOptimizer& optimizer,
                        const std::string& folder) {
    const MasterList masters = optimizer.masters();
    const auto write = [&] {
      if (impl_->ranks->rank() == 0) write_wide(policy, masters, folder);
    };
    // Who writes nothing waits and gives its slices.
    detail::slices_weights(*impl_->ranks) ? impl_->ranks->together(write) : write();
  };
  save(*impl_->policy, impl_->updater.optimizer(), directory);
  if (const auto& values = impl_->options.value_model) {
    save(*values, *impl_->updater.value_optimizer(), directory + "/value");
  }
}

void Trainer::save_policy(const std::string& directory,
                          const std::vector<std::pair<std::string, at::Tensor>>& gathered) const {
  write_wide(*impl_->policy, masters_in(gathered, "optimizer.", impl_->updater.optimizer()),
             directory);
  if (const auto& values = impl_->options.value_model) {
    write_wide(*values, masters_in(gathered, "value_optimizer.", *impl_->updater.value_optimizer()),
               directory + "/value");
  }
}

void Trainer::load_policy(const std::string& directory) {
  impl_->policy->load_weights(directory);
  if (const auto& values = impl_->options.value_model) values->load_weights(directory + "/value");
}

LossState Trainer::loss_state() const { return impl_->loss->state(); }

void Trainer::set_loss_state(const LossState& state) { impl_->loss->set_state(state); }

Metrics Trainer::step_counts() const { return impl_->step_counts; }

std::int64_t Trainer::steps_done() const { return impl_->updater.steps_done(); }

std::int64_t Trainer::tokens_seen() const { return impl_->tokens_seen; }

Policy& Trainer::policy() { return *impl_->policy; }

}  // namespace prefopt
