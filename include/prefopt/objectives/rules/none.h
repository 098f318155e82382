// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/token_rule.h"

namespace prefopt {

/// No limit: f = −ρ A, f' = −ρ A in ℓ. At ρ = 1 the gradient of REINFORCE.
class NoRule : public RuleBase<NoRule> {
 public:
  using RuleBase::RuleBase;

  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    return {.losses = -in.ratios * in.advantages, .by_log_ratio = -in.ratio_slopes * in.advantages};
  }
  static RuleProperties properties() { return {.policy_gradient = true}; }
  static PieceInfo info() {
    return {.kind = "none", .formula = "-ratio A", .source = "Williams 1992"};
  }
};

}  // namespace prefopt
