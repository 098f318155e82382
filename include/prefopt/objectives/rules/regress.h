// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/token_rule.h"

namespace prefopt {

struct RegressOptions {
  double tau = 0.1;

  void fields(FieldVisitor& v) {
    v.real({"tau", "weight of the log-ratio; the policy moves towards e^(A / tau)"}, tau,
           Range::above(0));
  }
};

/// f = (A − τ ℓ)² / (2τ), f' = −(A − τ ℓ): exact on data of any policy, without a ratio. At level
/// sequence_sum Kimi k1.5's mirror descent (2501.12599 eq. 3, whose gradient this is), at level
/// token DRO.
class RegressRule : public RuleBase<RegressRule, RegressOptions> {
 public:
  using RuleBase::RuleBase;
  static constexpr bool kIsLinear = false;

  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    const T gap = in.advantages - options_.tau * in.log_ratios;
    return {.losses = math::square(gap) / (2 * options_.tau), .by_log_ratio = -gap};
  }
  static RuleProperties properties() { return {.policy_gradient = true}; }
  static PieceInfo info() {
    return {.kind = "regress",
            .formula = "(A - tau log ratio)^2 / (2 tau)",
            .source = "arXiv:2501.12599 eq. 3",
            .elsewhere = {{"verl 0.9", "loss_mode dro", "level token"},
                          {"TRL 1.16", "A2POTrainer", "log-ratio to the reference"}}};
  }
};

}  // namespace prefopt
