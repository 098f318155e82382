// SPDX-License-Identifier: Apache-2.0
#include "train/updater.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "prefopt/error.h"
#include "train/step_failures.h"

namespace prefopt::detail {
namespace {

constexpr std::int64_t kMaxSkipped = 3;

/// As torch's clip_grad_norm_; `max_norm` 0: no clipping.
double clip_factor(double norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1;
}

}  // namespace

Updater::Updater(std::shared_ptr<Policy> policy, std::shared_ptr<Reference> reference,
                 const TrainerOptions& options, std::shared_ptr<Ranks> ranks)
    : policy_(std::move(policy)),
      reference_(std::move(reference)),
      options_(options.optimizer),
      total_steps_(options.total_steps),
      ranks_(std::move(ranks)),
      optimizer_(policy_->named_parameters(), options_, ranks_),
      value_options_(options.value_optimizer),
      value_pretrain_steps_(options.value_pretrain_steps) {
  if (options.value_model) {
    value_optimizer_.emplace(options.value_model->named_parameters(), value_options_, ranks_);
  }
}

double Updater::next_learning_rate() const {
  if (options_.schedule != Schedule::kConstant && total_steps_ < 1) {
    throw ConfigError(
        fmt::format("total_steps: expected the number of steps, at least 1, got {}; "
                    "only the constant schedule needs none",
                    total_steps_));
  }
  return learning_rate_at(options_, steps_done_, total_steps_);
}

void Updater::begin_step() {
  if (optimizer_.empty()) {
    throw ConfigError(
        "trainer: expected a policy with parameters that require a gradient, got "
        "none");
  }
  with_memory(
      [&] { drop_gradients(); },
      [&](const std::string& why) { throw_no_memory_for_state(steps_done_ + 1, options_, why); });
}

void Updater::drop_gradients() {
  optimizer_.zero_grad();
  if (value_optimizer_) value_optimizer_->zero_grad();
}

std::vector<RankOptimizer::Trained> Updater::trained() {
  std::vector<RankOptimizer::Trained> all = optimizer_.trained();
  if (value_optimizer_) {
    for (const auto& one : value_optimizer_->trained()) all.push_back(one);
  }
  return all;
}

std::vector<double> Updater::norms() const {
  std::vector<double> norms{optimizer_.grad_norm()};
  if (value_optimizer_) norms.push_back(value_optimizer_->grad_norm());
  return norms;
}

void Updater::join_norms(const std::vector<std::vector<double>>& of_ranks) {
  const auto join = [&](std::size_t which) {
    if (!optimizer_.is_sharded()) return of_ranks.front()[which];
    double squares = 0;
    for (const auto& norms : of_ranks) squares += norms[which] * norms[which];
    return std::sqrt(squares);
  };
  grad_norm_ = join(0);
  if (value_optimizer_) value_grad_norm_ = join(1);
}

/// Memory may be short on one rank alone, which all of them have to know.
void Updater::reserve_state(bool trains_policy, std::int64_t number) {
  const bool lacks_state = (trains_policy && optimizer_.lacks_state()) ||
                           (value_optimizer_ && value_optimizer_->lacks_state());
  const auto reserve = [&] {
    with_memory(
        [&] {
          if (trains_policy) optimizer_.reserve_state();
          if (value_optimizer_) value_optimizer_->reserve_state();
        },
        [&](const std::string& why) { throw_no_memory_for_state(number, options_, why); });
  };
  if (lacks_state && ranks_->size() > 1) return ranks_->together(reserve);
  reserve();
}

Updater::Outcome Updater::update(double loss, double grad_norm) {
  const double learning_rate = next_learning_rate();
  const std::int64_t number = steps_done_ + 1;
  if (!std::isfinite(loss) || !std::isfinite(grad_norm) || !std::isfinite(value_grad_norm_)) {
    steps_done_ = number;
    return ++skipped_in_a_row_ >= kMaxSkipped ? Outcome::kFailed : Outcome::kSkipped;
  }
  const bool trains_policy = steps_done_ >= value_pretrain_steps_;
  reserve_state(trains_policy, number);
  steps_done_ = number;
  skipped_in_a_row_ = 0;
  if (value_optimizer_) {
    value_optimizer_->step(learning_rate_at(value_options_, number - 1, total_steps_),
                           clip_factor(value_grad_norm_, value_options_.max_grad_norm));
  }
  if (!trains_policy) return Outcome::kUpdated;
  optimizer_.step(learning_rate, clip_factor(grad_norm, options_.max_grad_norm));
  if (reference_) reference_->after_step(*policy_, number);
  return Outcome::kUpdated;
}

Updater::Outcome Updater::count_step() {
  ++steps_done_;
  return Outcome::kCounted;
}

void Updater::fail(double loss, double grad_norm) const {
  const bool bad_loss = !std::isfinite(loss);
  throw NonFiniteError(fmt::format(
      "step {}: expected a finite {}, got {}; this is step {} in a row without an update, try a "
      "lower learning rate",
      steps_done_, bad_loss ? "loss" : "gradient norm", bad_loss ? loss : grad_norm,
      skipped_in_a_row_));
}

void Updater::visit_steps(StateVisitor& visitor) {
  visitor.integer("trainer.steps_done", steps_done_);
}

void Updater::visit_skipped(StateVisitor& visitor) {
  visitor.integer("trainer.skipped_in_a_row", skipped_in_a_row_);
}

}  // namespace prefopt::detail
