// SPDX-License-Identifier: Apache-2.0
#include "train/optimizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/util/accumulate.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <optional>
#include <string_view>
#include <utility>

#include "core/memory_pool.h"
#include "core/parallel.h"
#include "core/random.h"
#include "kernels/block_tensor.h"
#include "math/given_back.h"
#include "math/upload.h"
#include "math/wide_gradient.h"
#include "prefopt/error.h"
#include "train/adafactor.h"

namespace prefopt {

namespace {

/// Throws ConfigError for an option that the type of optimizer does not read.
void refuse_unused(const OptimizerOptions& options) {
  constexpr std::array<std::string_view, 3> kNames = {"adamw", "adafactor", "rmsprop"};
  const auto name = kNames[static_cast<std::size_t>(options.type)];
  const auto refuse = [&](OptimizerType type, std::string_view option, auto value, auto usual) {
    if (options.type == type || value == usual) return;
    throw ConfigError(
        fmt::format("optimizer: expected {} to be {} with type {}, which has no use for it, got {}",
                    option, usual, name, value));
  };
  const OptimizerOptions usual;
  using enum OptimizerType;
  refuse(kAdamW, "adam_beta1", options.adam_beta1, usual.adam_beta1);
  refuse(kAdamW, "adam_beta2", options.adam_beta2, usual.adam_beta2);
  refuse(kAdamW, "adam_epsilon", options.adam_epsilon, usual.adam_epsilon);
  refuse(kAdafactor, "adafactor_decay", options.adafactor_decay, usual.adafactor_decay);
  refuse(kAdafactor, "adafactor_clip", options.adafactor_clip, usual.adafactor_clip);
  refuse(kAdafactor, "adafactor_scale_parameter", options.adafactor_scale_parameter,
         usual.adafactor_scale_parameter);
  refuse(kRmsprop, "rmsprop_alpha", options.rmsprop_alpha, usual.rmsprop_alpha);
  refuse(kRmsprop, "rmsprop_epsilon", options.rmsprop_epsilon, usual.rmsprop_epsilon);
  refuse(kRmsprop, "rmsprop_momentum", options.rmsprop_momentum, usual.rmsprop_momentum);
  if (options.type == kAdafactor && options.state_dtype != StateDtype::kParameter) {
    throw ConfigError(
        "optimizer: expected state_dtype to be parameter with type adafactor, whose state is a "
        "row and a column of each matrix, got bfloat16");
  }
}

}  // namespace

void OptimizerOptions::fields(FieldVisitor& v) {
  // Texts from before these options lack them, and are the same without them.
  const auto is_shown = [&](OptimizerType owner) { return !v.writes() || type == owner; };
  if (!v.writes() || type != OptimizerType::kAdamW) {
    v.choice({"type", "The rule of a step", {"kind"}}, type, {"adamw", "adafactor", "rmsprop"});
  }
  v.real({"learning_rate", "Peak learning rate"}, learning_rate, Range::at_least(0));
  v.real({"adam_beta1", "AdamW: decay of the mean of gradients"}, adam_beta1,
         Range::half_open(0, 1));
  v.real({"adam_beta2", "AdamW: decay of the mean of squared gradients"}, adam_beta2,
         Range::half_open(0, 1));
  v.real({"adam_epsilon", "AdamW: added to the denominator"}, adam_epsilon, Range::at_least(0));
  if (is_shown(OptimizerType::kAdafactor)) {
    v.real({"adafactor_decay", "Adafactor: 1 - t^-decay of the mean squares are kept in step t"},
           adafactor_decay, Range::between(0, 1));
    v.real({"adafactor_clip", "Adafactor: updates of a larger root mean square are scaled to it"},
           adafactor_clip, Range::above(0));
    v.flag({"adafactor_scale_parameter",
            "Adafactor: the learning rate is relative to the root mean square of a weight"},
           adafactor_scale_parameter);
  }
  if (is_shown(OptimizerType::kRmsprop)) {
    v.real({"rmsprop_alpha", "RMSprop: decay of the mean of squared gradients"}, rmsprop_alpha,
           Range::half_open(0, 1));
    v.real({"rmsprop_epsilon", "RMSprop: added to the denominator"}, rmsprop_epsilon,
           Range::at_least(0));
    v.real({"rmsprop_momentum", "RMSprop: decay of the sum of updates; 0: none"}, rmsprop_momentum,
           Range::half_open(0, 1));
  }
  v.real({"weight_decay", "Decay of matrices; vectors have none. RMSprop adds it to the gradient"},
         weight_decay, Range::at_least(0));
  v.real({"max_grad_norm", "Gradients of a larger 2-norm are scaled down to it; 0: never"},
         max_grad_norm, Range::at_least(0));
  v.choice({"state_dtype",
            "What the means of AdamW and RMSprop are kept in: the parameters' dtype, at least "
            "float32, or bfloat16 by stochastic rounding, which takes half the memory of float32"},
           state_dtype, {"parameter", "bfloat16"});
  v.choice({"masters",
            "What bfloat16 and float16 weights are trained by: float32 masters, or none and "
            "stochastic rounding, which takes 4 bytes a weight less"},
           masters, {"float32", "stochastic"});
  v.choice({"schedule", "Course of the learning rate after the warmup", {"lr_scheduler_type"}},
           schedule, {"constant", "linear", "cosine"});
  v.integer({"warmup_steps", "Steps of linear warmup"}, warmup_steps, Range::at_least(0));
  v.real({"min_learning_rate_ratio",
          "Floor of the linear and cosine schedules, as a share of the peak",
          {"min_lr_rate"}},
         min_learning_rate_ratio, Range::between(0, 1));
  refuse_unused(*this);
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

/// Random numbers from 0 to 2^16 − 1, one for each place of a parameter.
class Draws {
 public:
  Draws(std::uint64_t seed, std::int64_t first) : seed_(seed), next_(first) {}

  /// Returns those of the next places.
  at::Tensor take(const at::Tensor& like) {
    const at::Tensor draws = at::empty(like.sizes(), at::TensorOptions(at::kInt));
    auto* const numbers = draws.mutable_data_ptr<std::int32_t>();
    const std::int64_t count = draws.numel();
    for (std::int64_t i = 0; i < count; ++i) {
      const auto place = static_cast<std::uint64_t>(next_ + i);
      numbers[i] = static_cast<std::int32_t>(splitmix64(seed_ ^ place) >> 48);
    }
    next_ += count;
    return uploaded(draws, like.device());
  }

 private:
  std::uint64_t seed_;
  std::int64_t next_;
};

// Rounds to bfloat16 or float16, away from zero with the probability of the part that is cut off,
// so that what is far smaller than a step of those is not lost on average.
void round_randomly(const at::Tensor& wide, at::Tensor& narrow, Draws& draws) {
  const at::Tensor single = wide.to(at::kFloat);
  const at::Tensor noise = draws.take(single);
  const at::Tensor bits = single.view(at::kInt);
  if (narrow.scalar_type() == at::kBFloat16) {
    narrow.copy_((bits + noise).bitwise_and(~0xffff).view(at::kFloat));
    return;
  }
  // A float16 has 10 bits behind the first, from 2^-14 down as many as there are down to 2^-24.
  constexpr int kMantissa = 23, kLeast = 127 - 14;
  const at::Tensor exponent = bits.bitwise_right_shift(kMantissa).bitwise_and(0xff);
  const at::Tensor grid =
      (exponent.clamp_min(kLeast) - 10).bitwise_left_shift(kMantissa).view(at::kFloat);
  const at::Tensor steps = single / grid;
  const at::Tensor below = steps.floor();
  narrow.copy_((below + ((steps - below) * (1 << 16)).gt(noise)) * grid);
}

// In float64; of short rows in at least float32 first, which reads large tensors many times faster
// than a float64 sum of every number.
at::Tensor norm_of(const at::Tensor& tensor) {
  constexpr std::int64_t kRow = 1024;
  const at::Tensor flat = tensor.reshape(-1);
  const std::int64_t whole = flat.size(0) / kRow * kRow;
  const auto norm = [](const at::Tensor& numbers) {
    return at::linalg_vector_norm(numbers, 2, std::nullopt, false, at::kDouble);
  };
  const auto of_rows = is_narrow(tensor.scalar_type()) ? at::kFloat : tensor.scalar_type();
  const at::Tensor rows = at::linalg_vector_norm(flat.slice(0, 0, whole).view({-1, kRow}), 2,
                                                 at::IntArrayRef{1}, false, of_rows);
  return norm(at::stack({norm(rows), norm(flat.slice(0, whole))}));
}

/// Calls f with each item; with items on a device in order, by this thread, which has its stream.
template <class Item, class F>
void for_each_in_parallel(std::vector<Item>& items, bool are_on_cpu, const F& f) {
  const std::int64_t count = std::ssize(items);
  parallel_for(0, count, are_on_cpu ? 1 : count, [&](std::int64_t first, std::int64_t last) {
    for (; first < last; ++first) f(items[static_cast<std::size_t>(first)]);
  });
}

// In large pages: each step passes over all of them.
at::Tensor empty_state(at::IntArrayRef shape, at::ScalarType dtype, at::Device device) {
  if (!device.is_cpu()) return at::empty(shape, at::TensorOptions(dtype).device(device));
  return empty_from_pool(shape, dtype);
}

std::vector<TrainedTensor> whole_tensors(const std::vector<NamedParameter>& parameters) {
  std::vector<TrainedTensor> tensors;
  for (const auto& [name, value] : parameters) {
    if (value.requires_grad()) {
      tensors.push_back({.name = name, .value = value, .is_matrix = value.dim() >= 2});
    }
  }
  return tensors;
}

}  // namespace

Optimizer::Optimizer(const std::vector<NamedParameter>& parameters, const OptimizerOptions& options)
    : Optimizer(options, whole_tensors(parameters)) {}

Optimizer::Optimizer(const OptimizerOptions& options, const std::vector<TrainedTensor>& tensors)
    : options_(options) {
  groups_[0].weight_decay = options.weight_decay;
  std::size_t place = 0;
  for (const auto& [name, value, is_matrix, first] : tensors) {
    if (has(value)) continue;  // once, under however many names
    kernels::check_trainable(value, name);
    const bool is_narrow = detail::is_narrow(value.scalar_type());
    const auto state_dtype = options.state_dtype == StateDtype::kBFloat16 ? at::kBFloat16
                             : is_narrow                                  ? at::kFloat
                                                                          : value.scalar_type();
    Parameter parameter{.name = name,
                        .value = value,
                        .first = first,
                        .place = place++,
                        .state_dtype = state_dtype,
                        .has_master = is_narrow && options.masters == Masters::kFloat32,
                        .offset = narrow_numbers_,
                        .moments = moments_of(value, options)};
    parameter.steps = at::zeros({}, value.options().dtype(at::kFloat).requires_grad(false));
    // Each begins at a cache line.
    if (is_narrow) narrow_numbers_ += (value.numel() + 15) / 16 * 16;
    groups_[is_matrix ? 0 : 1].parameters.push_back(std::move(parameter));
  }
}

std::vector<Optimizer::Moment> Optimizer::moments_of(const at::Tensor& value,
                                                     const OptimizerOptions& options) {
  const std::vector<std::int64_t> sizes = value.sizes().vec();
  if (options.type == OptimizerType::kAdamW) return {{"mean", sizes}, {"square", sizes}};
  if (options.type == OptimizerType::kRmsprop) {
    if (options.rmsprop_momentum == 0) return {{"square", sizes}};
    return {{"square", sizes}, {"momentum", sizes}};
  }
  if (sizes.size() < 2) return {{"square", sizes}};
  std::vector<std::int64_t> rows = sizes;
  std::vector<std::int64_t> columns = sizes;
  rows.pop_back();
  columns.erase(columns.end() - 2);
  return {{"rows", rows}, {"columns", columns}};
}

bool Optimizer::has(const at::Tensor& value) const {
  return std::any_of(groups_.begin(), groups_.end(), [&](const Group& group) {
    return std::any_of(group.parameters.begin(), group.parameters.end(),
                       [&](const Parameter& known) { return known.value.is_same(value); });
  });
}

std::vector<Optimizer::Parameter*> Optimizer::parameters() {
  std::vector<Parameter*> all;
  for (Group& group : groups_) {
    for (Parameter& parameter : group.parameters) all.push_back(&parameter);
  }
  return all;
}

bool Optimizer::empty() const {
  return groups_[0].parameters.empty() && groups_[1].parameters.empty();
}

bool Optimizer::has_masters() const {
  return narrow_numbers_ > 0 && options_.masters == Masters::kFloat32;
}

OptimizerBytes Optimizer::bytes() const {
  const auto of_narrow = narrow_numbers_ * static_cast<std::int64_t>(sizeof(float));
  OptimizerBytes bytes{.gradients = of_narrow, .masters = has_masters() ? of_narrow : 0};
  for (const Group& group : groups_) {
    for (const Parameter& parameter : group.parameters) {
      const auto size = [](const at::Tensor& tensor) {
        return static_cast<std::int64_t>(tensor.nbytes());
      };
      if (!is_narrow(parameter.value.scalar_type())) bytes.gradients += size(parameter.value);
      for (const Moment& moment : parameter.moments) {
        bytes.state += c10::multiply_integers(moment.sizes) *
                       static_cast<std::int64_t>(c10::elementSize(parameter.state_dtype));
      }
      bytes.state += size(parameter.steps);
    }
  }
  return bytes;
}

void Optimizer::reserve_gradients() {
  if (narrow_numbers_ == 0 || gradients_.defined()) return;
  for (Group& group : groups_) {
    for (Parameter& parameter : group.parameters) {
      if (!is_narrow(parameter.value.scalar_type())) continue;
      if (!gradients_.defined()) {
        gradients_ = empty_state({narrow_numbers_}, at::kFloat, parameter.value.device());
      }
      parameter.gradient = part_of(gradients_, parameter);
    }
  }
}

void Optimizer::zero_grad() {
  reserve_gradients();
  if (gradients_.defined()) gradients_.zero_();
  for (Group& group : groups_) {
    for (Parameter& parameter : group.parameters) {
      parameter.value.mutable_grad() = parameter.gradient;
      if (parameter.gradient.defined()) parameter.version_of_zero = parameter.gradient._version();
    }
  }
}

void Optimizer::drop_gradients_and_memory() {
  for (Parameter* const parameter : parameters()) {
    const at::Tensor& value = parameter->value;
    if (is_narrow(value.scalar_type()) && !parameter->gradient.defined()) {
      parameter->gradient =
          without_memory(value.sizes(), at::TensorOptions(at::kFloat).device(value.device()));
      parameter->gives_gradient_back = true;
    }
    parameter->drop_gradient();
  }
}

double Optimizer::grad_norm() const {
  std::vector<at::Tensor> norms;
  for (const Group& group : groups_) {
    for (const Parameter& parameter : group.parameters) {
      if (parameter.has_gradient()) norms.push_back(parameter.value.grad());
    }
  }
  const bool are_on_cpu = !norms.empty() && norms.front().is_cpu();
  for_each_in_parallel(norms, are_on_cpu,
                       [](at::Tensor& gradient) { gradient = norm_of(gradient); });
  return norms.empty() ? 0 : at::linalg_vector_norm(at::stack(norms)).item<double>();
}

void Optimizer::reserve_state() {
  for (Group& group : groups_) {
    for (Parameter& parameter : group.parameters) {
      if (parameter.has_gradient()) reserve_state(parameter);
    }
  }
}

bool Optimizer::lacks_state() const {
  return std::any_of(groups_.begin(), groups_.end(), [](const Group& group) {
    return std::any_of(group.parameters.begin(), group.parameters.end(),
                       [](const Parameter& one) { return one.has_gradient() && !one.has_state; });
  });
}

void Optimizer::step(double learning_rate, double factor) {
  const at::NoGradGuard no_grad;
  ++steps_done_;
  for (Group& group : groups_) {
    if (group.parameters.empty()) continue;
    const bool is_wide =
        std::any_of(group.parameters.begin(), group.parameters.end(),
                    [](const Parameter& one) { return one.value.scalar_type() == at::kDouble; });
    at::Tensor divisor;
    if (factor != 1 && is_wide) {
      scale_gradients(group, factor);
    } else if (factor != 1) {
      divisor = at::full({}, 1 / factor, group.parameters.front().steps.options());
    }
    step_group(group, learning_rate, divisor);
  }
}

void Optimizer::restart() {
  for (Group& group : groups_) {
    for (Parameter& parameter : group.parameters) {
      if (!parameter.has_state) continue;
      for (const Moment& moment : parameter.moments) moment.value.zero_();
      parameter.steps.zero_();
    }
  }
}

void Optimizer::visit_state(StateVisitor& visitor) {
  visitor.integer("step", steps_done_);
  for (Group& group : groups_) {
    for (Parameter& parameter : group.parameters) {
      make_state(parameter);
      for (const Moment& moment : parameter.moments) {
        visitor.tensor(moment.name + "." + parameter.name, moment.value);
      }
      visitor.tensor("steps." + parameter.name, parameter.steps);
      if (!parameter.has_master) continue;
      refresh_master(parameter);
      visitor.tensor("master." + parameter.name, parameter.master);
      parameter.rounded_version = -1;  // a loaded master need not be that of the weight
    }
  }
}

bool Optimizer::Parameter::has_gradient() const {
  const at::Tensor& present = value.grad();
  return present.defined() && !(present.is_same(gradient) && present._version() == version_of_zero);
}

void Optimizer::Parameter::drop_gradient() {
  if (gradient.defined()) {
    if (gives_gradient_back) {
      give_memory_back(gradient);
    } else {
      gradient.zero_();
    }
    version_of_zero = gradient._version();
  }
  value.mutable_grad() = gradient;
}

void Optimizer::Parameter::add_gradient(const at::Tensor& numbers) {
  const at::NoGradGuard no_grad;
  at::Tensor& present = value.mutable_grad();
  if (present.defined()) {
    present.add_(numbers);
  } else {
    present = numbers.clone();
  }
}

bool Optimizer::Parameter::is_narrow_between_steps() const {
  return is_narrow(state_dtype) || is_narrow(trained().scalar_type());
}

void Optimizer::Batch::add(const Parameter& parameter) {
  const at::Tensor& gradient = parameter.value.grad();
  trained.push_back(parameter.trained());
  gradients.push_back(parameter.has_master ? gradient.to(at::kFloat).contiguous() : gradient);
  steps.push_back(parameter.steps);
  moments.resize(parameter.moments.size());
  for (std::size_t i = 0; i < moments.size(); ++i) {
    moments[i].push_back(parameter.moments[i].value);
  }
}

std::vector<Optimizer::Batch> Optimizer::Batch::parts() const {
  if (!trained.front().is_cpu()) return {*this};
  std::vector<Batch> all;
  for (std::size_t i = 0; i < trained.size(); ++i) {
    const bool is_flat = trained[i].is_contiguous() && gradients[i].is_contiguous();
    const std::int64_t size = trained[i].numel(), step = is_flat ? kChunk : std::max(size, kChunk);
    for (std::int64_t begin = 0; begin < size; begin += step) {
      const auto part_of = [&](const at::Tensor& tensor) {
        return size <= step
                   ? tensor
                   : tensor.detach().view(-1).slice(0, begin, std::min(size, begin + step));
      };
      Batch part{.trained = {part_of(trained[i])},
                 .gradients = {part_of(gradients[i])},
                 .steps = {steps[i]},
                 .moments = {}};
      for (const auto& moment : moments) part.moments.push_back({part_of(moment[i])});
      all.push_back(std::move(part));
    }
  }
  return all;
}

at::Tensor Optimizer::part_of(const at::Tensor& buffer, const Parameter& parameter) {
  // No view: it counts its own versions, which tell whether anything was added to a gradient.
  return at::empty({0}, buffer.options())
      .set_(buffer.storage(), parameter.offset, parameter.value.sizes(), /*stride=*/{});
}

void Optimizer::reserve_state(Parameter& parameter) {
  const at::Tensor& value = parameter.value;
  for (Moment& moment : parameter.moments) {
    if (!moment.value.defined()) {
      moment.value = empty_state(moment.sizes, parameter.state_dtype, value.device());
    }
  }
  if (!parameter.has_master || parameter.master.defined()) return;
  if (!masters_.defined()) masters_ = empty_state({narrow_numbers_}, at::kFloat, value.device());
  parameter.master = part_of(masters_, parameter);
}

bool Optimizer::make_state(Parameter& parameter) {
  if (parameter.has_state) return false;
  reserve_state(parameter);
  for (Moment& moment : parameter.moments) moment.value.zero_();
  if (parameter.has_master) {
    parameter.master.copy_(parameter.value.detach());
    parameter.rounded_version = parameter.value._version();
  }
  parameter.has_state = true;
  return true;
}

void Optimizer::refresh_master(Parameter& parameter) {
  const at::Tensor value = parameter.value.detach();
  if (parameter.rounded_version == value._version()) return;
  const at::Tensor is_own = parameter.master.to(value.scalar_type()).eq(value);
  parameter.master.copy_(at::where(is_own, parameter.master, value.to(at::kFloat)));
  parameter.rounded_version = value._version();
}

void Optimizer::round_master(Parameter& parameter) {
  parameter.value.copy_(parameter.master);
  parameter.rounded_version = parameter.value._version();
}

void Optimizer::scale_gradients(Group& group, double factor) {
  for (Parameter& parameter : group.parameters) {
    if (parameter.has_gradient()) parameter.value.mutable_grad().mul_(factor);
  }
}

void Optimizer::step_group(Group& group, double learning_rate, const at::Tensor& divisor) {
  Batch batch;
  std::vector<Parameter*> with_master;
  for (std::size_t i = 0; i < group.parameters.size(); ++i) {
    Parameter& parameter = group.parameters[i];
    if (!parameter.has_gradient()) continue;
    parameter.steps.add_(1);
    const bool is_fresh = make_state(parameter);
    if (parameter.has_master) {
      refresh_master(parameter);
      with_master.push_back(&parameter);
    }
    if (options_.type == OptimizerType::kAdafactor) {
      step_adafactor(group, i, learning_rate, divisor);
    } else if (options_.type == OptimizerType::kRmsprop || parameter.is_narrow_between_steps()) {
      step_in_chunks(group, i, learning_rate, divisor);
    } else if (is_fresh) {  // while its zeros are in the cache
      Batch alone;
      alone.add(parameter);
      update(group, alone, learning_rate, divisor);
    } else {
      batch.add(parameter);
    }
  }
  if (!batch.trained.empty()) update(group, batch, learning_rate, divisor);
  for (Parameter* parameter : with_master) round_master(*parameter);
}

std::uint64_t Optimizer::seed_of(const Group& group, std::size_t index) const {
  return splitmix64(static_cast<std::uint64_t>(steps_done_) << 32 |
                    static_cast<std::uint64_t>(index) << 1 |
                    static_cast<std::uint64_t>(&group == &groups_[1]));
}

void Optimizer::step_in_chunks(const Group& group, std::size_t index, double learning_rate,
                               const at::Tensor& divisor) {
  const Parameter& parameter = group.parameters[index];
  const at::Tensor trained = parameter.trained().detach();
  const at::Tensor dense = trained.contiguous();
  const at::Tensor gradient = parameter.value.grad().reshape(-1);
  std::vector<at::Tensor> kept;  // between steps
  for (const Moment& moment : parameter.moments) kept.push_back(moment.value.view(-1));
  kept.push_back(dense.view(-1));
  const auto dtype = is_narrow(trained.scalar_type()) ? at::kFloat : trained.scalar_type();
  std::vector<Draws> draws;
  for (std::size_t i = 0; i < kept.size(); ++i) {
    draws.emplace_back(splitmix64(seed_of(group, index) + i), parameter.first);
  }
  for (std::int64_t begin = 0; begin < gradient.size(0); begin += kChunk) {
    const std::int64_t end = std::min(gradient.size(0), begin + kChunk);
    // A wide tensor is not copied.
    const auto widened = [&](const at::Tensor& all) { return all.slice(0, begin, end).to(dtype); };
    std::vector<at::Tensor> wide;
    for (const at::Tensor& all : kept) wide.push_back(widened(all));
    Batch batch{.trained = {wide.back()},
                .gradients = {widened(gradient)},
                .steps = {parameter.steps},
                .moments = {}};
    for (std::size_t i = 0; i + 1 < wide.size(); ++i) batch.moments.push_back({wide[i]});
    update(group, batch, learning_rate, divisor);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      if (!is_narrow(kept[i].scalar_type())) continue;
      at::Tensor narrow = kept[i].slice(0, begin, end);
      round_randomly(wide[i], narrow, draws[i]);
    }
  }
  if (!dense.is_same(trained)) trained.copy_(dense);
}

void Optimizer::step_adafactor(const Group& group, std::size_t index, double learning_rate,
                               const at::Tensor& divisor) {
  const Parameter& parameter = group.parameters[index];
  const at::Tensor trained = parameter.trained().detach();
  const at::Tensor dense = trained.contiguous();
  AdafactorStep step{.values = dense.view(-1),
                     .gradient = parameter.value.grad().reshape(-1),
                     .divisor = divisor,
                     .moments = {},
                     .number = parameter.steps.item<double>(),
                     .learning_rate = learning_rate,
                     .weight_decay = group.weight_decay,
                     .decay = options_.adafactor_decay,
                     .clip = options_.adafactor_clip,
                     .scale_parameter = options_.adafactor_scale_parameter};
  for (const Moment& moment : parameter.moments) step.moments.push_back(moment.value);
  if (step.moments.size() == 1) step.moments[0] = step.moments[0].view(-1);
  Draws draws(splitmix64(seed_of(group, index)), parameter.first);
  take_adafactor_step(step, [&](const at::Tensor& wide, at::Tensor& narrow) {
    round_randomly(wide, narrow, draws);
  });
  if (!dense.is_same(trained)) trained.copy_(dense);
}

void Optimizer::update_by_rmsprop(const Group& group, const Batch& batch, double learning_rate,
                                  const at::Tensor& divisor) const {
  const at::Tensor& trained = batch.trained[0];
  const at::Tensor& square = batch.moments[0][0];
  at::Tensor gradient = batch.gradients[0];
  if (divisor.defined()) gradient = gradient / divisor;
  if (group.weight_decay != 0) gradient = gradient.add(trained, group.weight_decay);
  square.mul_(options_.rmsprop_alpha).addcmul_(gradient, gradient, 1 - options_.rmsprop_alpha);
  const at::Tensor denominator = square.sqrt().add_(options_.rmsprop_epsilon);
  if (options_.rmsprop_momentum == 0) {
    trained.addcdiv_(gradient, denominator, -learning_rate);
    return;
  }
  const at::Tensor& momentum = batch.moments[1][0];
  momentum.mul_(options_.rmsprop_momentum).addcdiv_(gradient, denominator);
  trained.add_(momentum, -learning_rate);
}

void Optimizer::update(const Group& group, const Batch& batch, double learning_rate,
                       const at::Tensor& divisor) const {
  if (options_.type == OptimizerType::kRmsprop) {
    return update_by_rmsprop(group, batch, learning_rate, divisor);
  }
  std::vector<Batch> parts = batch.parts();
  for_each_in_parallel(parts, batch.trained.front().is_cpu(), [&](Batch& part) {
    at::_fused_adamw_(part.trained, part.gradients, part.moments[0], part.moments[1],
                      /*max_exp_avg_sqs=*/{}, part.steps, learning_rate, options_.adam_beta1,
                      options_.adam_beta2, group.weight_decay, options_.adam_epsilon,
                      /*amsgrad=*/false, /*maximize=*/false,
                      divisor.defined() ? std::optional(divisor) : std::nullopt);
  });
  // Unlike other operators this one moves no version counter, by which kept prompts go.
  for (const at::Tensor& trained : batch.trained) trained.unsafeGetTensorImpl()->bump_version();
}

std::vector<Optimizer::Master> Optimizer::masters() {
  std::vector<Master> masters;
  for (Parameter* const parameter : parameters()) {
    if (!parameter->has_master) continue;
    make_state(*parameter);
    refresh_master(*parameter);
    masters.push_back({parameter->value, parameter->master});
  }
  return masters;
}

WideWeights::WideWeights(const std::vector<Optimizer::Master>& masters,
                         const std::vector<NamedParameter>& parameters) {
  if (masters.empty()) return;
  std::vector<at::Tensor> wide;
  for (const auto& [name, value] : parameters) {
    if (!is_narrow(value.scalar_type())) continue;
    const auto found =
        std::find_if(masters.begin(), masters.end(),
                     [&, &value = value](const auto& item) { return item.value.is_same(value); });
    wide.push_back(found == masters.end() ? widened(value.detach(), at::kFloat) : found->wide);
    narrow_.emplace_back(value, value.detach());
  }
  for (std::size_t i = 0; i < wide.size(); ++i) narrow_[i].first.set_data(wide[i]);
}

WideWeights::~WideWeights() {
  for (const auto& [parameter, data] : narrow_) parameter.set_data(data);
}

}  // namespace detail
}  // namespace prefopt
