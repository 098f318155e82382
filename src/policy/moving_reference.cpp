// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/moving_reference.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string_view>

#include "kernels/block_tensor.h"
#include "math/sliced_weight.h"
#include "math/wide_gradient.h"
#include "prefopt/error.h"

namespace prefopt {

void MovingReferenceOptions::fields(FieldVisitor& v) {
  v.choice(
      {"rule",
       "An update takes the reference a part of its way to the policy (soft), all of it (hard) "
       "or to a moving average of the policy that is corrected for its lag (bema)"},
      rule, {"soft", "hard", "bema"});
  v.real({"alpha", "soft: the part of the way", {"ref_model_mixup_alpha"}}, alpha,
         Range{.min = 0, .max = 1, .min_open = true});
  v.integer({"update_steps",
             "Steps from one update to the next; soft with 1: a plain moving average",
             {"ref_model_sync_steps", "update_freq"}},
            update_steps, Range::at_least(1));
  v.real({"ema_power", "bema: power of the average's decay"}, ema_power, Range::at_least(0));
  v.real({"bias_power", "bema: power of the correction's decay"}, bias_power, Range::at_least(0));
  v.real({"lag", "bema: age of the average at step 0"}, lag, Range::at_least(1));
  v.real({"multiplier", "bema: what a step adds to that age"}, multiplier, Range::at_least(0));
  v.real({"min_ema_multiplier", "bema: least share of the policy in an update of the average"},
         min_ema_multiplier, Range::between(0, 1));
  v.integer({"update_after", "bema: step at which the average starts"}, update_after,
            Range::at_least(0));
}

namespace {

constexpr std::string_view kOtherState = "; was the state saved with another policy or rule?";

std::string describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "none";
  return fmt::format("{} of {}", c10::str(tensor.sizes()), c10::toString(tensor.scalar_type()));
}

/// One weight of the reference.
struct MovingWeight {
  std::string name;
  at::Tensor value;    ///< the model's own
  at::Tensor average;  ///< what `value` is rounded from, or `value` itself; undefined: kHard
  at::Tensor start;    ///< θ_τ; undefined: not kBema
};

void check_weight(std::string_view owner, const std::string& name, at::IntArrayRef sizes,
                  const at::Tensor& found) {
  if (found.defined() && found.sizes() == sizes) return;
  throw ConfigError(fmt::format("moving reference: expected weight '{}' of the {} to be {}, got {}",
                                name, owner, c10::str(sizes),
                                found.defined() ? c10::str(found.sizes()) : "none"));
}

MovingWeight moving_weight(const std::string& name, const at::Tensor& value, MovingRule rule) {
  const auto wide = value.options().dtype(detail::at_least_float32(value.scalar_type()));
  if (rule == MovingRule::kSoft) {
    const bool is_wide = value.scalar_type() == wide.dtype();
    return {name, value, is_wide ? value : detail::whole(value).to(wide), {}};
  }
  if (rule == MovingRule::kHard) return {name, value, {}, {}};
  return {name, value, at::zeros_like(value, wide), at::zeros_like(value, wide)};
}

/// Returns what two tensors share that are one.
const void* place_of(const at::Tensor& value) {
  return detail::is_sliced(value) ? value.storage().unsafeGetStorageImpl() : value.const_data_ptr();
}

/// Returns the weights of `start` that are to follow the policy's.
std::vector<MovingWeight> moving_weights(const Policy& start, const Policy& policy,
                                         MovingRule rule) {
  std::map<std::string, at::Tensor> values;
  for (const auto& [name, value] : start.named_parameters()) values[name] = value;
  std::set<const void*> of_policy, seen;
  for (const auto& parameter : policy.named_parameters()) {
    if (kernels::blocks_of(parameter.value)) continue;  // none of them is trained
    of_policy.insert(place_of(parameter.value));
  }
  std::vector<MovingWeight> weights;
  for (const TrainedWeight& trained : policy.trained_weights()) {
    const at::Tensor& value = values[trained.name];
    check_weight("start", trained.name, trained.weight.sizes(), value);
    if (of_policy.contains(place_of(value))) {
      throw ConfigError(
          fmt::format("moving reference: expected a start with own weights, got the "
                      "policy's '{}'; merged_copy() makes one",
                      trained.name));
    }
    // A tied weight has several names and moves once.
    if (seen.insert(place_of(value)).second) {
      weights.push_back(moving_weight(trained.name, value, rule));
    }
  }
  if (weights.empty()) {
    throw ConfigError(
        "moving reference: expected a policy with weights that require a gradient, got none");
  }
  return weights;
}

}  // namespace

struct MovingReference::Impl {
  MovingReferenceOptions options;
  std::shared_ptr<Reference> reference;
  std::vector<MovingWeight> weights;
  std::size_t trained = 0;                        // with each name of a tied weight
  at::Tensor started = at::zeros({}, at::kLong);  // of kBema: whether θ_τ is known

  /// Returns the policy's weights in the order of `weights`.
  std::vector<TrainedWeight> matching(const Policy& policy) const {
    std::map<std::string, TrainedWeight> given;
    for (auto& weight : policy.trained_weights()) given[weight.name] = std::move(weight);
    if (given.size() != trained) {
      throw ConfigError(fmt::format(
          "moving reference: expected the policy that it was made for, with {} trained weights, "
          "got one with {}",
          trained, given.size()));
    }
    std::vector<TrainedWeight> ordered;
    for (const auto& weight : weights) {
      TrainedWeight& found = given[weight.name];
      check_weight("policy", weight.name, weight.value.sizes(), found.weight);
      ordered.push_back(std::move(found));
    }
    return ordered;
  }

  /// Calls `move(own, target)` for each weight and the policy's.
  template <class Move>
  void for_each(const std::vector<TrainedWeight>& policy, Move&& move) {
    detail::HeldWeights theirs, ours;  // until the next layer is held
    for (std::size_t i = 0; i < weights.size(); ++i) {
      theirs = detail::HeldWeights(policy[i].weight);
      ours = detail::HeldWeights(weights[i].value);
      move(weights[i], policy[i].merged());
    }
  }

  void mix(const std::vector<TrainedWeight>& policy) {
    for_each(policy, [&](MovingWeight& own, const at::Tensor& target) {
      if (options.rule == MovingRule::kHard) return detail::assign(own.value, target);
      own.average.lerp_(target.to(own.average.options()), options.alpha);
      if (!own.average.is_same(own.value) || detail::is_sliced(own.value)) {
        detail::assign(own.value, own.average);
      }
    });
  }

  void start_average(const std::vector<TrainedWeight>& policy) {
    for_each(policy, [](MovingWeight& own, const at::Tensor& target) {
      own.start.copy_(target);
      own.average.copy_(own.start);
    });
    started.fill_(1);
  }

  void correct_average(const std::vector<TrainedWeight>& policy, std::int64_t step) {
    const double age = options.lag + options.multiplier * static_cast<double>(step);
    const double decay = std::max(std::pow(age, -options.ema_power), options.min_ema_multiplier);
    const double correction = std::pow(age, -options.bias_power);
    for_each(policy, [&](MovingWeight& own, const at::Tensor& merged) {
      const at::Tensor target = merged.to(own.average.options());
      own.average.lerp_(target, decay);
      detail::assign(own.value, at::add(own.average, target - own.start, correction));
    });
  }

  void follow(const std::vector<TrainedWeight>& policy, std::int64_t step) {
    if (options.rule != MovingRule::kBema) {
      if (step % options.update_steps == 0) mix(policy);
    } else if (step >= options.update_after && started.item<std::int64_t>() == 0) {
      start_average(policy);
    } else if (step > options.update_after &&
               (step - options.update_after) % options.update_steps == 0) {
      correct_average(policy, step);
    }
  }
};

MovingReference::MovingReference(const Policy& policy, const MovingReferenceOptions& options)
    : MovingReference(policy.merged_copy(), policy, options) {}

MovingReference::MovingReference(std::shared_ptr<Policy> start, const Policy& policy,
                                 const MovingReferenceOptions& options)
    : impl_(std::make_unique<Impl>()) {
  if (!start) throw ConfigError("moving reference: expected a policy to start from, got none");
  const at::NoGradGuard no_grad;
  impl_->options = checked(options, "moving reference");
  impl_->weights = moving_weights(*start, policy, options.rule);
  impl_->trained = policy.trained_weights().size();
  impl_->reference = make_frozen_reference(std::move(start));
  if (options.rule == MovingRule::kBema && options.update_after == 0) {
    impl_->start_average(impl_->matching(policy));
  }
}

MovingReference::~MovingReference() = default;

at::Tensor MovingReference::sequence_logps(const TokenBatch& batch) {
  return impl_->reference->sequence_logps(batch);
}

at::Tensor MovingReference::token_logps(const TokenBatch& batch) {
  return impl_->reference->token_logps(batch);
}

at::Tensor MovingReference::tempered_token_logps(const TokenBatch& batch, double temperature) {
  return impl_->reference->tempered_token_logps(batch, temperature);
}

Policy* MovingReference::policy() { return impl_->reference->policy(); }

void MovingReference::after_step(const Policy& policy, std::int64_t step) {
  const at::NoGradGuard no_grad;
  impl_->follow(impl_->matching(policy), step);
}

void MovingReference::update_now(const Policy& policy) {
  if (impl_->options.rule == MovingRule::kBema) {
    throw ConfigError(
        "moving reference: expected the rule soft or hard for an update between steps, got bema");
  }
  const at::NoGradGuard no_grad;
  impl_->mix(impl_->matching(policy));
}

std::vector<std::pair<std::string, at::Tensor>> MovingReference::state() const {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const MovingWeight& weight : impl_->weights) {
    tensors.emplace_back("value." + weight.name, weight.value);
    if (weight.average.defined() && !weight.average.is_same(weight.value)) {
      tensors.emplace_back("average." + weight.name, weight.average);
    }
    if (weight.start.defined()) tensors.emplace_back("start." + weight.name, weight.start);
  }
  if (impl_->options.rule == MovingRule::kBema) tensors.emplace_back("started", impl_->started);
  return tensors;
}

void MovingReference::load_state(const std::vector<std::pair<std::string, at::Tensor>>& saved) {
  std::map<std::string, at::Tensor> left(saved.begin(), saved.end());
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  for (const auto& [name, own] : state()) {
    const at::Tensor given = left[name];
    if (describe(given) != describe(own)) {
      throw CheckpointError(fmt::format("moving reference: expected tensor '{}' to be {}, got {}{}",
                                        name, describe(own), describe(given), kOtherState));
    }
    copies.emplace_back(own, given);
    left.erase(name);
  }
  if (!left.empty()) {
    throw CheckpointError(fmt::format("moving reference: expected its own tensors only, got '{}'{}",
                                      left.begin()->first, kOtherState));
  }
  const at::NoGradGuard no_grad;
  for (const auto& [own, given] : copies) detail::assign(own, given);
}

}  // namespace prefopt
