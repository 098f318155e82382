// SPDX-License-Identifier: Apache-2.0
#include "prefopt/math/tensor.h"

#include <ATen/ops/argsort.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/gt.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/log.h>
#include <ATen/ops/log_sigmoid.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/square.h>
#include <ATen/ops/sum.h>

namespace prefopt::math {
namespace {

at::Tensor below_exp_limit(const at::Tensor& x) {
  return at::clamp_max(x, x.scalar_type() == at::kDouble ? kExpLimitDouble : kExpLimitFloat);
}

at::Tensor below_certainty(const at::Tensor& x) {
  return at::clamp_max(x, x.scalar_type() == at::kDouble ? -kCertaintyDouble : -kCertaintyFloat);
}

}  // namespace

using Tensors = Functions<at::Tensor>;

at::Tensor Tensors::log_sigmoid(const at::Tensor& x) { return at::log_sigmoid(x); }
at::Tensor Tensors::sigmoid(const at::Tensor& x) { return at::sigmoid(x); }
at::Tensor Tensors::square(const at::Tensor& x) { return at::square(x); }

at::Tensor Tensors::constant(const at::Tensor& like, double value) {
  return at::full_like(like, value);
}

at::Tensor Tensors::capped_expm1(const at::Tensor& x) {
  const at::Tensor low = below_exp_limit(x);
  return at::expm1(low) + at::exp(low) * (x - low);
}

at::Tensor Tensors::tame_exp_slope(const at::Tensor& x) { return at::exp(below_exp_limit(x)); }

at::Tensor Tensors::relu(const at::Tensor& x) { return at::relu(x); }

at::Tensor Tensors::is_positive(const at::Tensor& x) { return at::gt(x, 0).to(x.scalar_type()); }

at::Tensor Tensors::log_at_least(const at::Tensor& x, double least) {
  return at::log(at::clamp_min(x, least));
}

at::Tensor Tensors::log_odds(const at::Tensor& x) {
  const at::Tensor low = below_certainty(x);
  const at::Tensor slope = log_odds_slope(low);
  return low + at::log(slope) + slope * (x - low);
}

at::Tensor Tensors::log_odds_slope(const at::Tensor& x) {
  return at::reciprocal(-at::expm1(below_certainty(x)));
}

at::Tensor Tensors::sum(const at::Tensor& x) { return at::sum(x); }

at::Tensor Tensors::scalar_like(const at::Tensor& like, double value) {
  return at::scalar_tensor(value, like.options());
}

at::Tensor Tensors::clamp(const at::Tensor& x, double limit) { return at::clamp(x, -limit, limit); }

at::Tensor Tensors::group_sum(const at::Tensor& x, std::int64_t size) {
  return at::sum(x.view({-1, size}), 1);
}

at::Tensor Tensors::spread(const at::Tensor& x, std::int64_t size) {
  return at::repeat_interleave(x, size);
}

at::Tensor Tensors::sum_of_equal(const at::Tensor& x, const at::Tensor& keys) {
  const at::Tensor is_equal = at::eq(keys.unsqueeze(0), keys.unsqueeze(1));
  return at::sum(is_equal * x, 1);
}

at::Tensor Tensors::sort_order(const at::Tensor& x) {
  return at::argsort(x, /*stable=*/true, /*dim=*/0, /*descending=*/false);
}

at::Tensor Tensors::take(const at::Tensor& x, const at::Tensor& order) {
  return at::index_select(x, 0, order);
}

at::Tensor Tensors::put_back(const at::Tensor& x, const at::Tensor& order) {
  return at::empty_like(x).index_copy_(0, order, x);
}

}  // namespace prefopt::math
