// SPDX-License-Identifier: Apache-2.0
#pragma once

// The part of the oracle that prefers one completion to another; loss_oracle.cpp adds likelihoods
// and other regularizers to it.

#include "support/loss_oracle.h"

namespace prefopt::testing_support {

/// Weighted mean over the rows; empty for a loss that it does not know.
std::optional<Real> mean_preference(const nlohmann::json& config, const ExactPairLogps& in,
                                    const ExactPairLogps& frozen);

}  // namespace prefopt::testing_support
