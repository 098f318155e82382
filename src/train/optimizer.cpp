// SPDX-License-Identifier: Apache-2.0
#include "train/optimizer.h"

#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numbers>
#include <tuple>
#include <utility>

namespace prefopt {

void OptimizerOptions::fields(FieldVisitor& v) {
  v.real({"learning_rate", "Peak learning rate"}, learning_rate, Range::at_least(0));
  v.real({"adam_beta1", "AdamW: decay of the mean of gradients"}, adam_beta1,
         Range::half_open(0, 1));
  v.real({"adam_beta2", "AdamW: decay of the mean of squared gradients"}, adam_beta2,
         Range::half_open(0, 1));
  v.real({"adam_epsilon", "AdamW: added to the denominator"}, adam_epsilon, Range::at_least(0));
  v.real({"weight_decay", "AdamW: decay of matrices; vectors have none"}, weight_decay,
         Range::at_least(0));
  v.real({"max_grad_norm", "Gradients of a larger 2-norm are scaled down to it; 0: never"},
         max_grad_norm, Range::at_least(0));
  v.choice({"schedule", "Course of the learning rate after the warmup", {"lr_scheduler_type"}},
           schedule, {"constant", "linear", "cosine"});
  v.integer({"warmup_steps", "Steps of linear warmup"}, warmup_steps, Range::at_least(0));
  v.real({"min_learning_rate_ratio",
          "Floor of the linear and cosine schedules, as a share of the peak",
          {"min_lr_rate"}},
         min_learning_rate_ratio, Range::between(0, 1));
}

double learning_rate_at(const OptimizerOptions& options, std::int64_t step,
                        std::int64_t total_steps) {
  const double peak = options.learning_rate;
  const auto warmup = options.warmup_steps;
  if (step < warmup) return peak * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (options.schedule == Schedule::kConstant) return peak;
  const double progress = step < total_steps ? static_cast<double>(step - warmup) /
                                                   static_cast<double>(total_steps - warmup)
                                             : 1;
  const double left = options.schedule == Schedule::kLinear
                          ? 1 - progress
                          : (1 + std::cos(std::numbers::pi * progress)) / 2;
  const double floor = options.min_learning_rate_ratio;
  return peak * (floor + (1 - floor) * left);
}

namespace detail {

Optimizer::Optimizer(const std::vector<NamedParameter>& parameters,
                     const OptimizerOptions& options) {
  std::vector<at::Tensor> decayed;
  std::vector<at::Tensor> plain;
  for (const auto& [name, value] : parameters) {
    if (!value.requires_grad()) continue;
    parameters_.push_back(value);
    (value.dim() >= 2 ? decayed : plain).push_back(value);
  }
  const auto defaults = torch::optim::AdamWOptions(options.learning_rate)
                            .betas(std::make_tuple(options.adam_beta1, options.adam_beta2))
                            .eps(options.adam_epsilon)
                            .weight_decay(options.weight_decay);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  if (!decayed.empty()) {
    groups.emplace_back(std::move(decayed), std::make_unique<torch::optim::AdamWOptions>(defaults));
  }
  if (!plain.empty()) {
    auto without_decay = std::make_unique<torch::optim::AdamWOptions>(defaults);
    without_decay->weight_decay(0);
    groups.emplace_back(std::move(plain), std::move(without_decay));
  }
  if (!groups.empty()) adamw_.emplace(groups, defaults);
}

void Optimizer::zero_grad() {
  for (auto& parameter : parameters_) parameter.mutable_grad().reset();
}

double Optimizer::grad_norm() const {
  std::vector<at::Tensor> norms;
  for (const auto& parameter : parameters_) {
    if (!parameter.grad().defined()) continue;
    norms.push_back(at::linalg_vector_norm(parameter.grad(), 2, std::nullopt, false, at::kDouble));
  }
  return norms.empty() ? 0 : at::linalg_vector_norm(at::stack(norms)).item<double>();
}

void Optimizer::clip(double norm, double max_norm) {
  const double scale = max_norm / (norm + 1e-6);  // as torch's clip_grad_norm_
  if (scale >= 1) return;
  for (auto& parameter : parameters_) {
    if (parameter.grad().defined()) parameter.mutable_grad().mul_(scale);
  }
}

void Optimizer::step(double learning_rate) {
  for (auto& group : adamw_->param_groups()) group.options().set_lr(learning_rate);
  adamw_->step();
}

}  // namespace detail
}  // namespace prefopt
