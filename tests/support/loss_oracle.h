// SPDX-License-Identifier: Apache-2.0
#pragma once

// The losses once more, written from the papers, sharing nothing with the library's formulas: plain
// loops over the rows, sums of exp and log, no common algebra.

#include <Eigen/Core>
#include <nlohmann/json.hpp>
#include <optional>

#include "prefopt/exact/pair_logps.h"

namespace prefopt::testing_support {

/// Wider than the float64 inputs, so that differences of a large loss are still good derivatives.
using Real = long double;

struct OracleResult {
  Real loss;  ///< mean over the rows of `in`, which are the whole step
  /// Derivative of the samples' part, where it is not that of the value (HyPO's score function).
  std::optional<Eigen::ArrayXd> sample_gradient;
};

/// The parts that a loss treats as constants (the factors of WPO, running means, z0 of KTO, the
/// beta of beta-DPO, the stopped KL of TDPO, the weights of a policy gradient) are taken from
/// `frozen`, by default from `in` itself: with `frozen` held, differences in `in` are the gradient
/// that the paper takes. `config` is the full config of the loss. Empty for a loss without an
/// oracle: the contract tests treat that as a failure.
std::optional<OracleResult> loss_oracle(const nlohmann::json& config, const ExactPairLogps& in,
                                        const ExactPairLogps* frozen = nullptr);

}  // namespace prefopt::testing_support
