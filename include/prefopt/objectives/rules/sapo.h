// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/token_rule.h"

namespace prefopt {

struct SapoOptions {
  double tau_positive = 1;
  double tau_negative = 1.05;

  void fields(FieldVisitor& v) {
    v.real({"tau_positive", "how fast the gradient fades where A > 0"}, tau_positive,
           Range::above(0));
    v.real({"tau_negative", "how fast it fades elsewhere"}, tau_negative, Range::above(0));
  }
};

/// A soft limit: f = −A (4/τ) σ(τ (ρ − 1)), f' = −4 σ (1 − σ) ρ A (SAPO, 2511.20347).
class SapoRule : public RuleBase<SapoRule, SapoOptions> {
 public:
  using RuleBase::RuleBase;

  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    const T gains = math::is_positive(in.advantages);
    const T tau = gains * options_.tau_positive + (1 - gains) * options_.tau_negative;
    const T gate = math::sigmoid(T(tau * (in.ratios - 1)));
    return {.losses = -4 * in.advantages * gate / tau,
            .by_log_ratio = -4 * gate * (1 - gate) * in.ratio_slopes * in.advantages};
  }
  static RuleProperties properties() { return {.policy_gradient = true}; }
  static PieceInfo info() {
    return {.kind = "sapo",
            .formula = "-A (4 / tau) sigmoid(tau (ratio - 1))",
            .source = "arXiv:2511.20347",
            .elsewhere = {{"TRL 1.16", "loss_type sapo"}, {"verl 0.9", "loss_mode sapo"}}};
  }
};

}  // namespace prefopt
