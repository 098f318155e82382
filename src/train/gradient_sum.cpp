// SPDX-License-Identifier: Apache-2.0
#include "train/gradient_sum.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <utility>

#include "math/slices.h"
#include "math/wide_gradient.h"

namespace prefopt::detail {
namespace {

at::TensorOptions gradient_options(const Optimizer::Parameter& parameter) {
  return parameter.value.detach().options().dtype(at_least_float32(parameter.value.scalar_type()));
}

bool share_a_bucket(const Optimizer::Parameter& a, const Optimizer::Parameter& b) {
  const auto of_a = gradient_options(a), of_b = gradient_options(b);
  return of_a.dtype() == of_b.dtype() && of_a.device() == of_b.device();
}

}  // namespace

/// Told by autograd that a parameter's gradient of a backward pass is complete.
class GradientSum::Hook final : public torch::autograd::PostAccumulateGradHook {
 public:
  Hook(GradientSum& sum, std::size_t member) : sum_(sum), member_(member) {}
  void operator()(const torch::autograd::Variable& /*parameter*/) override { sum_.ready(member_); }

 private:
  GradientSum& sum_;
  std::size_t member_;
};

GradientSum::GradientSum(std::shared_ptr<Ranks> ranks, std::vector<RankOptimizer::Trained> trained)
    : ranks_(std::move(ranks)), trained_(std::move(trained)), present_(trained_.size()) {
  if (!is_several()) return;
  // A backward pass comes to the last parameters first.
  std::reverse(trained_.begin(), trained_.end());
  fill_buckets();
  if (!is_tree()) add_hooks();
}

GradientSum::~GradientSum() {
  if (!is_several() || is_tree()) return;
  for (const auto& [whole, own] : trained_) {
    torch::autograd::impl::set_post_acc_grad_hooks(whole->value, nullptr);
  }
  for (const auto& [parameter, place] : narrow_hooks_) parameter.remove_hook(place);
}

void GradientSum::fill_buckets() {
  const std::int64_t limit = ranks_->options().bucket_mib << 20;
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < trained_.size(); ++i) {
    const Optimizer::Parameter& parameter = *trained_[i].whole;
    if (buckets_.empty() || bytes >= limit ||
        !share_a_bucket(parameter, *trained_[buckets_.back().members.back()].whole)) {
      buckets_.emplace_back();
      bytes = 0;
    }
    buckets_.back().members.push_back(i);
    bucket_of_.push_back(buckets_.size() - 1);
    bytes += parameter.value.numel() *
             static_cast<std::int64_t>(gradient_options(parameter).dtype().itemsize());
  }
}

void GradientSum::add_hooks() {
  for (std::size_t i = 0; i < trained_.size(); ++i) {
    const at::Tensor& value = trained_[i].whole->value;
    torch::autograd::impl::set_post_acc_grad_hooks(value, std::make_unique<Hook>(*this, i));
    if (is_narrow(value.scalar_type())) add_narrow_hook(i);
  }
}

/// Where nodes have given autograd nothing, as they have added themselves, it calls this hook and,
/// by its version, the other one too.
void GradientSum::add_narrow_hook(std::size_t member) {
  const auto hook = [this, member](const at::Tensor& by_autograd) {
    if (by_autograd.defined()) {
      wide_gradient(trained_[member].whole->value);  // has memory, to which autograd adds now
    } else {
      ready(member);
    }
  };
  const at::Tensor& parameter = trained_[member].whole->value;
  narrow_hooks_.push_back({parameter, parameter.register_hook(hook)});
}

// A step.

void GradientSum::begin_step(std::int64_t most_parts) {
  std::fill(present_.begin(), present_.end(), false);
  tree_ = {};
  in_round_ = false;
  const bool in_each = sends_in_each();
  const bool sends = is_several() && !is_tree();
  rounds_left_ = !sends ? 0 : in_each ? most_parts : std::min<std::int64_t>(most_parts, 1);
}

void GradientSum::backward(const at::Tensor& loss, bool is_last) {
  if (is_tree()) {
    loss.backward();
    take_leaf();
    return;
  }
  const bool sends = is_several() && (is_last || sends_in_each());
  if (sends) begin_round();
  loss.backward();
  if (sends) end_round();
}

void GradientSum::finish() {
  if (is_tree()) return finish_tree();
  while (rounds_left_ > 0) {
    if (!in_round_) begin_round();
    end_round();
  }
}

void GradientSum::give_up() {
  const at::NoGradGuard no_grad;
  drop_gradients();
  tree_ = {};
  if (is_tree()) {
    for (const Bucket& bucket : buckets_) ranks_->gather(flat(bucket));
    return;
  }
  for (; rounds_left_ > 0; --rounds_left_) {
    if (!in_round_) begin_round();
    for (Bucket& bucket : buckets_) discard(bucket);
    for (; next_ < buckets_.size(); ++next_) {
      send(buckets_[next_]);
      discard(buckets_[next_]);
    }
    in_round_ = false;
  }
}

void GradientSum::drop_gradients() {
  for (const auto& [whole, own] : trained_) {
    whole->drop_gradient();
    own->drop_gradient();
  }
}

void GradientSum::begin_round() {
  in_round_ = true;
  next_ = 0;
  is_ready_.assign(trained_.size(), false);
  for (Bucket& bucket : buckets_) bucket.missing = std::ssize(bucket.members);
}

/// Sends the buckets of parameters that got no gradient, too.
void GradientSum::end_round() {
  for (; next_ < buckets_.size(); ++next_) send(buckets_[next_]);
  for (Bucket& bucket : buckets_) receive(bucket);
  in_round_ = false;
  --rounds_left_;
}

void GradientSum::ready(std::size_t member) {
  if (!in_round_ || is_ready_[member]) return;
  is_ready_[member] = true;
  --buckets_[bucket_of_[member]].missing;
  // In one order on all ranks, whichever is complete first.
  for (; next_ < buckets_.size() && buckets_[next_].missing == 0; ++next_) send(buckets_[next_]);
}

// Buckets.

at::Tensor GradientSum::flat(const Bucket& bucket) const {
  std::int64_t numbers = 0;
  for (const std::size_t member : bucket.members) numbers += trained_[member].whole->value.numel();
  const Optimizer::Parameter& first = *trained_[bucket.members.front()].whole;
  at::Tensor all = at::empty({numbers}, gradient_options(first));
  std::int64_t begin = 0;
  for (const std::size_t member : bucket.members) {
    const at::Tensor& value = trained_[member].whole->value;
    const at::Tensor part = all.narrow(0, begin, value.numel());
    if (value.grad().defined()) {
      part.copy_(value.grad().reshape(-1));
    } else {
      part.zero_();
    }
    begin += value.numel();
  }
  return all;
}

void GradientSum::send(Bucket& bucket) {
  const at::NoGradGuard no_grad;
  for (const std::size_t member : bucket.members) {
    if (trained_[member].whole->has_gradient()) present_[member] = true;
  }
  if (is_sharded()) return send_slices(bucket);
  bucket.received = flat(bucket);
  bucket.wait = ranks_->begin_sum(bucket.received);
}

void GradientSum::receive(Bucket& bucket) {
  if (!bucket.received.defined()) return;  // taken before an error
  const at::NoGradGuard no_grad;
  bucket.wait();
  if (is_sharded()) return receive_slices(bucket);
  std::int64_t begin = 0;
  for (const std::size_t member : bucket.members) {
    const std::int64_t numbers = trained_[member].whole->value.numel();
    put(member, bucket.received.narrow(0, begin, numbers));
    begin += numbers;
  }
  bucket.received.reset();
}

/// Waits for a bucket that is under way, and forgets it.
void GradientSum::discard(Bucket& bucket) {
  if (bucket.received.defined()) bucket.wait();
  bucket.sent.reset();
  bucket.received.reset();
}

void GradientSum::put(std::size_t member, const at::Tensor& sum) {
  Optimizer::Parameter& parameter = *trained_[member].whole;
  const at::Tensor shaped = sum.view(parameter.value.sizes());
  if (parameter.gradient.defined()) {
    parameter.gradient.copy_(shaped);
  } else {
    parameter.value.mutable_grad() = shaped;
  }
}

// Slices.

std::int64_t GradientSum::width_of(std::size_t member) const {
  return slice_size(trained_[member].whole->value.numel(), ranks_->size());
}

void GradientSum::send_slices(Bucket& bucket) {
  std::int64_t width = 0;
  for (const std::size_t member : bucket.members) width += width_of(member);
  const auto options = gradient_options(*trained_[bucket.members.front()].whole);
  bucket.sent = at::zeros({ranks_->size(), width}, options);
  bucket.received = at::empty({width}, options);
  std::int64_t begin = 0;
  for (const std::size_t member : bucket.members) {
    Optimizer::Parameter& whole = *trained_[member].whole;
    if (whole.has_gradient()) {
      cut(whole.value.grad().reshape(-1), bucket.sent.narrow(1, begin, width_of(member)));
    }
    whole.drop_gradient();
    begin += width_of(member);
  }
  bucket.wait = ranks_->begin_sum_scatter(bucket.received, bucket.sent);
}

void GradientSum::receive_slices(Bucket& bucket) {
  std::int64_t begin = 0;
  for (const std::size_t member : bucket.members) {
    Optimizer::Parameter& own = *trained_[member].own;
    own.add_gradient(bucket.received.narrow(0, begin, own.value.numel()));
    begin += width_of(member);
  }
  bucket.sent.reset();
  bucket.received.reset();
}

// The order of a tree.

/// Takes the gradients of a part out of the parameters.
void GradientSum::take_leaf() {
  const at::NoGradGuard no_grad;
  TreeSum::Tensors leaf;
  for (const auto& [whole, own] : trained_) {
    if (!whole->has_gradient()) {
      leaf.emplace_back();
      continue;
    }
    const at::Tensor& present = whole->value.grad();
    leaf.push_back(whole->gradient.defined() ? present.clone() : present);
    whole->drop_gradient();
  }
  tree_.add(std::move(leaf));
}

void GradientSum::finish_tree() {
  const at::NoGradGuard no_grad;
  const TreeSum::Tensors total = tree_.take();
  for (std::size_t i = 0; i < total.size(); ++i) {
    if (!total[i].defined()) continue;
    present_[i] = true;
    put(i, total[i]);
  }
  for (Bucket& bucket : buckets_) add_up_in_tree_order(bucket);
}

void GradientSum::add_up_in_tree_order(Bucket& bucket) {
  const at::Tensor of_ranks = ranks_->gather(flat(bucket));
  TreeSum sum;
  for (int rank = 0; rank < ranks_->size(); ++rank) sum.add({of_ranks[rank]});
  bucket.received = sum.take().front();
  bucket.wait = [] {};
  receive(bucket);
}

// Parameters without a gradient.

std::string GradientSum::present() const {
  std::string digits;
  for (const bool is_present : present_) digits += is_present ? '1' : '0';
  return digits;
}

void GradientSum::keep_present(const std::vector<std::string>& of_ranks) {
  for (std::size_t i = 0; i < trained_.size(); ++i) {
    const bool is_present =
        std::any_of(of_ranks.begin(), of_ranks.end(),
                    [&](const std::string& digits) { return digits[i] == '1'; });
    if (is_present) continue;
    trained_[i].whole->drop_gradient();
    trained_[i].own->drop_gradient();
  }
}

}  // namespace prefopt::detail
