// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <Eigen/Core>
#include <cstdint>

#include "prefopt/export.h"

namespace prefopt {

/// Returns of each token the sum of `x` over the tokens of its segment. `segments` [tokens] has
/// whole numbers from 0 to below `count`; others are a ShapeError (of a tensor, an error of
/// LibTorch).
PREFOPT_API at::Tensor segment_sums(const at::Tensor& x, const at::Tensor& segments,
                                    std::int64_t count);
PREFOPT_API Eigen::ArrayXd segment_sums(const Eigen::ArrayXd& x, const Eigen::ArrayXd& segments,
                                        std::int64_t count);

}  // namespace prefopt
