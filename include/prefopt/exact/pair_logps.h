// SPDX-License-Identifier: Apache-2.0
#pragma once

// Losses on Eigen: `loss.evaluate(ExactPairLogps{…})` runs the same formulas that train on tensors,
// in float64 and without LibTorch's dispatcher.

#include <Eigen/Core>

#include "prefopt/losses/pair_logps.h"
#include "prefopt/math/eigen.h"

namespace prefopt {

using ExactPairLogps = BasicPairLogps<Eigen::ArrayXd>;
using ExactLossOutput = BasicLossOutput<Eigen::ArrayXd>;

}  // namespace prefopt
