// SPDX-License-Identifier: Apache-2.0
#include "train/rank_optimizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "math/sliced_weight.h"
#include "math/slices.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// Returns the numbers of a parameter, [n], a view without a gradient.
at::Tensor numbers_of(const Optimizer::Parameter& parameter) {
  return parameter.value.detach().view(-1);
}

void check_can_be_cut(const std::vector<Optimizer::Parameter*>& parameters,
                      const OptimizerOptions& options) {
  if (options.type == OptimizerType::kAdafactor) {
    throw ConfigError(
        "distributed.sharding: expected none with optimizer adafactor, got slices; its rows and "
        "columns are means over whole matrices");
  }
  for (const Optimizer::Parameter* const parameter : parameters) {
    if (!parameter->value.is_contiguous()) {
      throw ConfigError(fmt::format(
          "distributed.sharding: expected contiguous parameters, got '{}' with other strides",
          parameter->name));
    }
  }
}

/// Returns the whole of which each rank has a slice.
at::Tensor gather_slices(const at::Tensor& slice, at::IntArrayRef sizes, Ranks& ranks) {
  const at::NoGradGuard no_grad;
  const at::Tensor all = at::empty(sizes, slice.options().requires_grad(false));
  const at::Tensor padded = at::zeros({slice_size(all.numel(), ranks.size())}, all.options());
  padded.narrow(0, 0, slice.numel()).copy_(slice.view(-1));
  join(ranks.gather(padded), all.view(-1));
  return all;
}

/// Shows another visitor whole tensors in place of slices.
class WholeState final : public StateVisitor {
 public:
  WholeState(const std::vector<RankOptimizer::Trained>& trained, Ranks& ranks, StateVisitor& whole)
      : trained_(trained), ranks_(ranks), whole_(whole) {}

  bool is_loading() const override { return whole_.is_loading(); }
  void integer(const std::string& name, std::int64_t& value) override {
    whole_.integer(name, value);
  }
  void real(const std::string& name, double& value) override { whole_.real(name, value); }
  void integers(const std::string& name, std::vector<std::int64_t>& values) override {
    whole_.integers(name, values);
  }
  void tensor(const std::string& name, const at::Tensor& value) override {
    if (value.dim() == 0) return whole_.tensor(name, value);  // a count
    const at::Tensor all = gather_slices(value, parameter_of(name).value.sizes(), ranks_);
    whole_.tensor(name, all);
    if (is_loading()) value.copy_(slice_of(all.view(-1), ranks_.rank(), ranks_.size()));
  }

 private:
  /// `name` is that of a moment, a dot, and the parameter's.
  const Optimizer::Parameter& parameter_of(const std::string& name) const {
    const std::string of = name.substr(name.find('.') + 1);
    return *std::find_if(trained_.begin(), trained_.end(), [&](const auto& one) {
              return one.whole->name == of;
            })->whole;
  }

  const std::vector<RankOptimizer::Trained>& trained_;
  Ranks& ranks_;
  StateVisitor& whole_;
};

}  // namespace

RankOptimizer::RankOptimizer(const std::vector<NamedParameter>& parameters,
                             const OptimizerOptions& options, std::shared_ptr<Ranks> ranks)
    : ranks_(std::move(ranks)), whole_(parameters, options) {
  if (ranks_->size() > 1 && ranks_->options().sharding != Sharding::kNone) make_slices(options);
}

void RankOptimizer::make_slices(const OptimizerOptions& options) {
  const std::vector<Optimizer::Parameter*> parameters = whole_.parameters();
  check_can_be_cut(parameters, options);
  std::vector<TrainedTensor> slices;
  for (const Optimizer::Parameter* const parameter : parameters) {
    const at::Tensor& whole = parameter->value;
    const at::Tensor slice =
        is_sliced(whole)
            ? slice_in(whole)
            : slice_of(numbers_of(*parameter), ranks_->rank(), ranks_->size()).detach();
    const std::int64_t first = ranks_->rank() * slice_size(whole.numel(), ranks_->size());
    slices.push_back({.name = parameter->name,
                      .value = at::Tensor(slice).requires_grad_(),
                      .is_matrix = whole.dim() >= 2,
                      .first = std::min(first, whole.numel())});
  }
  slices_.emplace(options, slices);
}

std::vector<RankOptimizer::Trained> RankOptimizer::trained() {
  const auto whole = whole_.parameters();
  const auto own = stepper().parameters();
  std::vector<Trained> all;
  for (std::size_t i = 0; i < whole.size(); ++i) all.push_back({whole[i], own[i]});
  std::sort(all.begin(), all.end(),
            [](const Trained& a, const Trained& b) { return a.whole->place < b.whole->place; });
  return all;
}

void RankOptimizer::zero_grad() {
  if (!slices_ || ranks_->options().sharding == Sharding::kOptimizer) {
    whole_.zero_grad();
  } else {
    whole_.drop_gradients_and_memory();
  }
  if (!slices_) return;
  follow_parameters();
  slices_->zero_grad();
}

/// Somebody may have given a parameter other memory.
void RankOptimizer::follow_parameters() {
  for (const auto& [whole, own] : trained()) {
    if (is_sliced(whole->value)) continue;
    const at::Tensor slice = slice_of(numbers_of(*whole), ranks_->rank(), ranks_->size());
    if (slice.const_data_ptr() != own->value.const_data_ptr()) own->value.set_data(slice);
  }
}

void RankOptimizer::step(double learning_rate, double factor) {
  stepper().step(learning_rate, factor);
  if (slices_) share_weights();
}

/// Sends the slices of parameters that a step has changed, some of them together.
void RankOptimizer::share_weights() {
  const std::int64_t limit = ranks_->options().bucket_mib << 20;
  std::vector<Trained> some;
  std::int64_t bytes = 0;
  for (const Trained& one : trained()) {
    if (!one.own->has_gradient()) continue;
    if (is_sliced(one.whole->value)) continue;  // it is gathered where it is read
    const bool fits = some.empty() || (bytes < limit && some.back().whole->value.dtype() ==
                                                            one.whole->value.dtype());
    if (!fits) {
      share(some);
      some.clear();
      bytes = 0;
    }
    some.push_back(one);
    bytes += static_cast<std::int64_t>(one.whole->value.nbytes());
  }
  if (!some.empty()) share(some);
}

void RankOptimizer::share(const std::vector<Trained>& some) {
  const at::NoGradGuard no_grad;
  std::int64_t width = 0;
  for (const Trained& one : some) width += slice_size(one.whole->value.numel(), ranks_->size());
  const at::Tensor own = at::zeros({width}, some.front().own->value.detach().options());
  std::int64_t begin = 0;
  for (const Trained& one : some) {
    own.narrow(0, begin, one.own->value.numel()).copy_(one.own->value);
    begin += slice_size(one.whole->value.numel(), ranks_->size());
  }
  const at::Tensor all = ranks_->gather(own);
  begin = 0;
  for (const Trained& one : some) {
    const std::int64_t each = slice_size(one.whole->value.numel(), ranks_->size());
    join(all.narrow(1, begin, each), numbers_of(*one.whole));
    begin += each;
  }
}

void RankOptimizer::visit_state(StateVisitor& visitor) {
  if (!slices_) return whole_.visit_state(visitor);
  const std::vector<Trained> all = trained();
  WholeState whole(all, *ranks_, visitor);
  slices_->visit_state(whole);
}

std::vector<Optimizer::Master> RankOptimizer::masters() {
  if (!slices_) return whole_.masters();
  std::vector<Optimizer::Master> masters;
  for (const Optimizer::Master& of_slice : slices_->masters()) {
    for (const auto& [whole, own] : trained()) {
      if (!own->value.is_same(of_slice.value)) continue;
      const at::Tensor all = gather_slices(of_slice.wide, whole->value.sizes(), *ranks_);
      if (ranks_->rank() == 0) masters.push_back({whole->value, all});
    }
  }
  return masters;
}

std::int64_t RankOptimizer::state_bytes() {
  std::int64_t bytes = 0;
  for (const Optimizer::Parameter* const parameter : stepper().parameters()) {
    for (const auto& moment : parameter->moments) {
      if (moment.value.defined()) bytes += static_cast<std::int64_t>(moment.value.nbytes());
    }
    if (parameter->master.defined()) bytes += static_cast<std::int64_t>(parameter->master.nbytes());
  }
  return bytes;
}

}  // namespace prefopt::detail
