// SPDX-License-Identifier: Apache-2.0
#include "prefopt/objectives/token_sequences.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>

namespace prefopt {
namespace {

/// 1 where the next token is of the same segment; [tokens − 1].
at::Tensor is_followed(const at::Tensor& segments, const at::Tensor& like) {
  const std::int64_t pairs = segments.size(0) - 1;
  return segments.narrow(0, 0, pairs).eq(segments.narrow(0, 1, pairs)).to(like.options());
}

at::Tensor one_zero(const at::Tensor& like) { return at::zeros({1}, like.options()); }

}  // namespace

at::Tensor sums_to_go(const at::Tensor& x, const at::Tensor& segments, std::int64_t count) {
  const at::Tensor places = segments.to(at::kLong);
  const at::Tensor lens =
      at::zeros({count}, places.options()).index_add(0, places, at::ones_like(places));
  const at::Tensor ends = lens.cumsum(0).index_select(0, places);
  // Of all tokens from each one on, less those after its segment.
  const at::Tensor all = at::cat({x.flip(0).cumsum(0).flip(0), one_zero(x)});
  return all.narrow(0, 0, x.size(0)) - all.index_select(0, ends);
}

Eigen::ArrayXd sums_to_go(const Eigen::ArrayXd& x, const Eigen::ArrayXd& segments,
                          std::int64_t /*count*/) {
  Eigen::ArrayXd sums = x;
  for (Eigen::Index t = x.size() - 2; t >= 0; --t) {
    if (segments[t] == segments[t + 1]) sums[t] += sums[t + 1];
  }
  return sums;
}

at::Tensor next_values(const at::Tensor& x, const at::Tensor& segments) {
  const std::int64_t pairs = x.size(0) - 1;
  return at::cat({x.narrow(0, 1, pairs) * is_followed(segments, x), one_zero(x)});
}

Eigen::ArrayXd next_values(const Eigen::ArrayXd& x, const Eigen::ArrayXd& segments) {
  Eigen::ArrayXd next = Eigen::ArrayXd::Zero(x.size());
  for (Eigen::Index t = 0; t + 1 < x.size(); ++t) {
    if (segments[t] == segments[t + 1]) next[t] = x[t + 1];
  }
  return next;
}

at::Tensor previous_values(const at::Tensor& x, const at::Tensor& segments) {
  const std::int64_t pairs = x.size(0) - 1;
  return at::cat({one_zero(x), x.narrow(0, 0, pairs) * is_followed(segments, x)});
}

Eigen::ArrayXd previous_values(const Eigen::ArrayXd& x, const Eigen::ArrayXd& segments) {
  Eigen::ArrayXd previous = Eigen::ArrayXd::Zero(x.size());
  for (Eigen::Index t = 1; t < x.size(); ++t) {
    if (segments[t] == segments[t - 1]) previous[t] = x[t - 1];
  }
  return previous;
}

}  // namespace prefopt
