// SPDX-License-Identifier: Apache-2.0
#include "prefopt/objectives/segments.h"

#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <cmath>

#include "prefopt/error.h"

namespace prefopt {

at::Tensor segment_sums(const at::Tensor& x, const at::Tensor& segments, std::int64_t count) {
  const at::Tensor places = segments.to(at::kLong);
  return at::zeros({count}, x.options()).index_add(0, places, x).index_select(0, places);
}

Eigen::ArrayXd segment_sums(const Eigen::ArrayXd& x, const Eigen::ArrayXd& segments,
                            std::int64_t count) {
  if (x.size() != segments.size() || (segments < 0).any() ||
      (segments >= static_cast<double>(count)).any()) {
    throw ShapeError(
        fmt::format("segment_sums: expected a segment from 0 to below {} of each of {} tokens, got "
                    "others",
                    count, x.size()));
  }
  Eigen::ArrayXd sums = Eigen::ArrayXd::Zero(count);
  for (Eigen::Index i = 0; i < x.size(); ++i) sums[std::lround(segments[i])] += x[i];
  return segments.unaryExpr([&](double segment) { return sums[std::lround(segment)]; });
}

}  // namespace prefopt
