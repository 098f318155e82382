// SPDX-License-Identifier: Apache-2.0
#pragma once

// The losses once more, on Eigen in float64 and written from the papers, sharing nothing with the
// library's formulas: plain log(1 + e^x), no stable branches, no common algebra.

#include <Eigen/Core>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "prefopt/exact/pair_logps.h"

namespace prefopt::testing_support {

struct OracleResult {
  double loss;
  /// Derivative of the samples' part, where it is not that of the value (HyPO's score function).
  std::optional<Eigen::ArrayXd> sample_gradient;
};

/// Empty for a loss without an oracle: the contract tests treat that as a failure.
std::optional<OracleResult> loss_oracle(const nlohmann::json& config, const ExactPairLogps& in);

}  // namespace prefopt::testing_support
