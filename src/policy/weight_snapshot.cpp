// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/weight_snapshot.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <cstddef>
#include <map>
#include <set>

#include "math/sliced_weight.h"
#include "math/wide_gradient.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

/// Each once, under the first of its names.
std::vector<NamedParameter> trained_parameters(const Policy& policy) {
  std::set<const void*> seen;
  std::vector<NamedParameter> trained;
  for (NamedParameter& parameter : policy.named_parameters()) {
    if (!parameter.value.requires_grad()) continue;
    if (seen.insert(parameter.value.unsafeGetTensorImpl()).second) {
      trained.push_back(std::move(parameter));
    }
  }
  return trained;
}

/// The policy's parameters in the order of a snapshot's weights.
std::vector<at::Tensor> parameters_of(const Policy& policy,
                                      const std::vector<NamedParameter>& weights) {
  std::map<std::string, at::Tensor> by_name;
  for (auto& [name, value] : policy.named_parameters()) by_name[name] = value.detach();
  std::vector<at::Tensor> parameters;
  for (const auto& [name, weight] : weights) {
    const at::Tensor& found = by_name[name];
    if (!found.defined() || found.sizes() != weight.sizes()) {
      throw ConfigError(fmt::format(
          "weight snapshot: expected a policy whose '{}' is {}, got {}; it is of another policy",
          name, c10::str(weight.sizes()), found.defined() ? c10::str(found.sizes()) : "none"));
    }
    parameters.push_back(found);
  }
  return parameters;
}

}  // namespace

WeightSnapshot::WeightSnapshot(const Policy& policy) {
  detail::HeldWeights held;  // until the next layer is
  for (const auto& [name, value] : trained_parameters(policy)) {
    held = detail::HeldWeights(value);
    weights_.push_back({name, value.detach().to(value.options().device(at::kCPU),
                                                /*non_blocking=*/false, /*copy=*/true)});
  }
  if (weights_.empty()) {
    throw ConfigError(
        "weight snapshot: expected a policy with parameters that require a gradient, got none");
  }
}

void WeightSnapshot::take(const Policy& policy) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> parameters = parameters_of(policy, weights_);
  detail::HeldWeights held;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    held = detail::HeldWeights(parameters[i]);
    weights_[i].value.copy_(parameters[i]);
  }
}

void WeightSnapshot::restore(Policy& policy) const {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> parameters = parameters_of(policy, weights_);
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    detail::assign(parameters[i], weights_[i].value);
  }
}

std::vector<std::pair<std::string, at::Tensor>> WeightSnapshot::state() const {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& [name, value] : weights_) tensors.emplace_back(name, value);
  return tensors;
}

BorrowedWeights::BorrowedWeights(Policy& policy, const WeightSnapshot& snapshot)
    : policy_(policy), own_(policy) {
  snapshot.restore(policy);
}

BorrowedWeights::~BorrowedWeights() { own_.restore(policy_); }

std::optional<TrainedWeight> detail::find_not_extrapolable(const Policy& policy) {
  for (TrainedWeight& weight : policy.trained_weights()) {
    if (weight.lora_a.defined() || is_narrow(weight.weight.scalar_type())) return std::move(weight);
  }
  return std::nullopt;
}

void extrapolate_weights(Policy& policy, const WeightSnapshot& previous, double alpha) {
  if (!(alpha >= 0 && alpha < 1)) {
    throw ConfigError(fmt::format("extrapolation: expected alpha in [0, 1), got {}", alpha));
  }
  if (const auto weight = detail::find_not_extrapolable(policy)) {
    if (weight->lora_a.defined()) {
      throw ConfigError(fmt::format(
          "extrapolation: expected weights without adapters, got one of '{}'; a sum of two "
          "adapters is none of the same rank",
          weight->name));
    }
    throw ConfigError(fmt::format(
        "extrapolation: expected weights of float32 or float64, got '{}' of {}; its rounding is as "
        "large as a step",
        weight->name, c10::toString(weight->weight.scalar_type())));
  }
  const at::NoGradGuard no_grad;
  std::vector<NamedParameter> before;
  for (auto& [name, value] : previous.state()) before.push_back({name, value});
  const std::vector<at::Tensor> parameters = parameters_of(policy, before);
  detail::HeldWeights held;
  for (std::size_t i = 0; i < before.size(); ++i) {
    held = detail::HeldWeights(parameters[i]);
    const at::Tensor step = parameters[i] - before[i].value.to(parameters[i].device());
    detail::assign(parameters[i], parameters[i].add(step, alpha));
  }
}

}  // namespace prefopt
