// SPDX-License-Identifier: Apache-2.0
#include "train/optimizer.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

#include "core/memory_pool.h"
#include "core/random.h"

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
  v.choice({"state_dtype",
            "What AdamW's means are kept in: the parameters' dtype, or bfloat16 by stochastic "
            "rounding, which takes half the memory of float32"},
           state_dtype, {"parameter", "bfloat16"});
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
namespace {

// Numbers of a chunk whose narrow state is widened at a time: it stays in the cache.
constexpr std::int64_t kChunk = std::int64_t{1} << 18;

// Rounds float32 to bfloat16, up with the probability of the part that is cut off, so that what is
// far smaller than a step of bfloat16 is not lost on average.
void round_randomly(const at::Tensor& wide, at::Tensor& narrow, at::Generator& generator) {
  const at::Tensor noise =
      at::randint(0, 1 << 16, wide.sizes(), generator, at::TensorOptions(at::kInt));
  const at::Tensor bits = (wide.view(at::kInt) + noise).bitwise_and(~0xffff);
  narrow.copy_(bits.view(at::kFloat));
}

// In float64; of short rows in the tensor's own dtype first, which reads large tensors many times
// faster than a float64 sum of every number.
at::Tensor norm_of(const at::Tensor& tensor) {
  constexpr std::int64_t kRow = 1024;
  const at::Tensor flat = tensor.reshape(-1);
  const std::int64_t whole = flat.size(0) / kRow * kRow;
  const auto norm = [](const at::Tensor& numbers) {
    return at::linalg_vector_norm(numbers, 2, std::nullopt, false, at::kDouble);
  };
  const at::Tensor rows =
      at::linalg_vector_norm(flat.slice(0, 0, whole).view({-1, kRow}), 2, at::IntArrayRef{1});
  return norm(at::stack({norm(rows), norm(flat.slice(0, whole))}));
}

// In large pages: each step passes over all of them.
at::Tensor empty_state(const at::Tensor& parameter, at::ScalarType dtype) {
  if (!parameter.is_cpu()) {
    return at::empty(parameter.sizes(), parameter.options().dtype(dtype).requires_grad(false));
  }
  return empty_from_pool(parameter.sizes(), dtype);
}

}  // namespace

Optimizer::Optimizer(const std::vector<NamedParameter>& parameters, const OptimizerOptions& options)
    : options_(options) {
  groups_[0].weight_decay = options.weight_decay;
  for (const auto& [name, value] : parameters) {
    if (!value.requires_grad()) continue;
    Group& group = groups_[value.dim() >= 2 ? 0 : 1];
    const auto dtype =
        options.state_dtype == StateDtype::kBFloat16 ? at::kBFloat16 : value.scalar_type();
    group.names.push_back(name);
    group.parameters.push_back(value);
    group.dtypes.push_back(dtype);
    group.means.emplace_back();
    group.squares.emplace_back();
    group.has_state.push_back(false);
    group.steps.push_back(at::zeros({}, value.options().dtype(at::kFloat).requires_grad(false)));
  }
}

bool Optimizer::empty() const {
  return groups_[0].parameters.empty() && groups_[1].parameters.empty();
}

void Optimizer::zero_grad() {
  for (auto& group : groups_) {
    for (auto& parameter : group.parameters) parameter.mutable_grad().reset();
  }
}

double Optimizer::grad_norm() const {
  std::vector<at::Tensor> norms;
  for (const auto& group : groups_) {
    for (const auto& parameter : group.parameters) {
      if (parameter.grad().defined()) norms.push_back(norm_of(parameter.grad()));
    }
  }
  return norms.empty() ? 0 : at::linalg_vector_norm(at::stack(norms)).item<double>();
}

void Optimizer::reserve_state() {
  for (auto& group : groups_) {
    for (std::size_t i = 0; i < group.parameters.size(); ++i) {
      if (group.parameters[i].grad().defined()) reserve_state(group, i);
    }
  }
}

void Optimizer::step(double learning_rate, double factor) {
  const at::NoGradGuard no_grad;
  ++steps_done_;
  for (auto& group : groups_) {
    if (group.parameters.empty()) continue;
    const bool is_wide = std::any_of(
        group.parameters.begin(), group.parameters.end(),
        [](const at::Tensor& parameter) { return parameter.scalar_type() == at::kDouble; });
    at::Tensor divisor;
    if (factor != 1 && is_wide) {
      scale_gradients(group, factor);
    } else if (factor != 1) {
      divisor = at::full({}, 1 / factor, group.steps.front().options());
    }
    step_group(group, learning_rate, divisor);
  }
}

void Optimizer::visit_state(StateVisitor& visitor) {
  visitor.integer("step", steps_done_);
  for (auto& group : groups_) {
    for (std::size_t i = 0; i < group.names.size(); ++i) {
      make_state(group, i);
      visitor.tensor("mean." + group.names[i], group.means[i]);
      visitor.tensor("square." + group.names[i], group.squares[i]);
      visitor.tensor("steps." + group.names[i], group.steps[i]);
    }
  }
}

void Optimizer::reserve_state(Group& group, std::size_t index) {
  for (at::Tensor* state : {&group.means[index], &group.squares[index]}) {
    if (!state->defined()) *state = empty_state(group.parameters[index], group.dtypes[index]);
  }
}

bool Optimizer::make_state(Group& group, std::size_t index) {
  if (group.has_state[index]) return false;
  reserve_state(group, index);
  group.means[index].zero_();
  group.squares[index].zero_();
  group.has_state[index] = true;
  return true;
}

void Optimizer::scale_gradients(Group& group, double factor) {
  for (auto& parameter : group.parameters) {
    if (parameter.grad().defined()) parameter.mutable_grad().mul_(factor);
  }
}

void Optimizer::step_group(Group& group, double learning_rate, const at::Tensor& divisor) {
  std::vector<at::Tensor> parameters, gradients, means, squares, steps;
  for (std::size_t i = 0; i < group.parameters.size(); ++i) {
    if (!group.parameters[i].grad().defined()) continue;
    group.steps[i].add_(1);
    const bool is_fresh = make_state(group, i);
    if (group.dtypes[i] != group.parameters[i].scalar_type()) {
      step_narrow(group, i, learning_rate, divisor);
      continue;
    }
    // While its zeros are in the cache.
    if (is_fresh) {
      update(group, {group.parameters[i]}, {group.parameters[i].grad()}, {group.means[i]},
             {group.squares[i]}, {group.steps[i]}, learning_rate, divisor);
      continue;
    }
    parameters.push_back(group.parameters[i]);
    gradients.push_back(group.parameters[i].grad());
    means.push_back(group.means[i]);
    squares.push_back(group.squares[i]);
    steps.push_back(group.steps[i]);
  }
  if (!parameters.empty()) {
    update(group, parameters, gradients, means, squares, steps, learning_rate, divisor);
  }
}

void Optimizer::step_narrow(Group& group, std::size_t index, double learning_rate,
                            const at::Tensor& divisor) {
  const at::Tensor parameter = group.parameters[index].detach().view(-1);
  const at::Tensor gradient = group.parameters[index].grad().reshape(-1);
  const at::Tensor mean = group.means[index].view(-1);
  const at::Tensor square = group.squares[index].view(-1);
  // Of step and parameter alone, so that a resumed run draws the same. The generator takes 32 bits.
  const auto place = static_cast<std::uint64_t>(steps_done_) << 32 |
                     static_cast<std::uint64_t>(index) << 1 |
                     static_cast<std::uint64_t>(&group == &groups_[1]);
  auto generator = at::detail::createCPUGenerator(splitmix64(place) >> 32);
  for (std::int64_t begin = 0; begin < parameter.size(0); begin += kChunk) {
    const std::int64_t end = std::min(parameter.size(0), begin + kChunk);
    at::Tensor narrow_mean = mean.slice(0, begin, end);
    at::Tensor narrow_square = square.slice(0, begin, end);
    const at::Tensor wide = parameter.slice(0, begin, end).to(at::kFloat);
    const at::Tensor wide_mean = narrow_mean.to(at::kFloat);
    const at::Tensor wide_square = narrow_square.to(at::kFloat);
    update(group, {wide}, {gradient.slice(0, begin, end).to(at::kFloat)}, {wide_mean},
           {wide_square}, {group.steps[index]}, learning_rate, divisor);
    // Widened numbers are a copy, those of a float32 parameter are its own.
    if (parameter.scalar_type() != at::kFloat) parameter.slice(0, begin, end).copy_(wide);
    round_randomly(wide_mean, narrow_mean, generator);
    round_randomly(wide_square, narrow_square, generator);
  }
}

void Optimizer::update(const Group& group, at::TensorList parameters, at::TensorList gradients,
                       at::TensorList means, at::TensorList squares, at::TensorList steps,
                       double learning_rate, const at::Tensor& divisor) const {
  at::_fused_adamw_(parameters, gradients, means, squares, /*max_exp_avg_sqs=*/{}, steps,
                    learning_rate, options_.adam_beta1, options_.adam_beta2, group.weight_decay,
                    options_.adam_epsilon, /*amsgrad=*/false, /*maximize=*/false,
                    divisor.defined() ? std::optional(divisor) : std::nullopt);
}

}  // namespace detail
}  // namespace prefopt
