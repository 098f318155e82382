// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <Eigen/Core>
#include <cstdint>

#include "prefopt/export.h"

// Functions of numbers [tokens] that depend on the order of tokens. `segments` [tokens] has whole
// numbers, equal for the tokens of a segment, which are side by side.
namespace prefopt {

/// Returns of each token the sum over it and the later ones of its segment; segments are numbered
/// from 0 to below `count`.
PREFOPT_API at::Tensor sums_to_go(const at::Tensor& x, const at::Tensor& segments,
                                  std::int64_t count);
PREFOPT_API Eigen::ArrayXd sums_to_go(const Eigen::ArrayXd& x, const Eigen::ArrayXd& segments,
                                      std::int64_t count);

/// Returns of each token the number of the next one of its segment; 0 for the last one.
PREFOPT_API at::Tensor next_values(const at::Tensor& x, const at::Tensor& segments);
PREFOPT_API Eigen::ArrayXd next_values(const Eigen::ArrayXd& x, const Eigen::ArrayXd& segments);

/// Returns of each token the number of the one before it in its segment; 0 for the first one.
PREFOPT_API at::Tensor previous_values(const at::Tensor& x, const at::Tensor& segments);
PREFOPT_API Eigen::ArrayXd previous_values(const Eigen::ArrayXd& x, const Eigen::ArrayXd& segments);

}  // namespace prefopt
