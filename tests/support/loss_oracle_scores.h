// SPDX-License-Identifier: Apache-2.0
#pragma once

// From sums of log-probs to the scores that the oracle's losses compare.

#include <vector>

#include "support/loss_oracle.h"

namespace prefopt::testing_support {

inline Real number(const nlohmann::json& config, const char* name) {
  return config.at(name).get<double>();
}

/// One completion of each row.
struct Side {
  const Eigen::ArrayXd& logps;
  const Eigen::ArrayXd& ref_logps;
  const Eigen::ArrayXd& overlap_logps;
  const Eigen::ArrayXd& ref_head_logps;
  const Eigen::ArrayXd& lens;
  const Eigen::ArrayXd& limited_logratios;
};

Side chosen_side(const ExactPairLogps& in);
Side rejected_side(const ExactPairLogps& in);

/// Log-probs with the tail of LD-DPO weighted; the reference's are 0 where the loss has none.
Real policy(const nlohmann::json& config, const Side& side, int row);
Real reference(const nlohmann::json& config, const Side& side, int row);

/// log(pi/pi_ref) of a completion, or of a loss without a reference log pi.
Real logratio(const nlohmann::json& config, const Side& side, int row);

/// x over the length of the completion, where the loss is length-normalized.
Real per_token(const nlohmann::json& config, const Side& side, int row, Real x);

std::vector<Real> scores(const nlohmann::json& config, const Side& side);

}  // namespace prefopt::testing_support
