// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/token_rule.h"

namespace prefopt {

struct VespoOptions {
  double k_positive = 2;
  double lambda_positive = 3;
  double k_negative = 3;
  double lambda_negative = 2;

  void fields(FieldVisitor& v) {
    v.real({"k_positive", "power of the ratio where A >= 0"}, k_positive, Range::at_least(0));
    v.real({"lambda_positive", "decay in the ratio where A >= 0"}, lambda_positive,
           Range::at_least(0));
    v.real({"k_negative", "power of the ratio where A < 0"}, k_negative, Range::at_least(0));
    v.real({"lambda_negative", "decay in the ratio where A < 0"}, lambda_negative,
           Range::at_least(0));
  }
};

/// f = −sg(φ(w)) A log π, φ = e^(λ + k log w − λ w) of the completion's ratio w (VESPO,
/// 2602.10693): f' = −φ A in the token's log-prob. φ(1) = 1.
class VespoRule : public RuleBase<VespoRule, VespoOptions> {
 public:
  using RuleBase::RuleBase;
  static constexpr bool kOfCompletions = true;

  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    const T losing = math::is_positive(T(-in.advantages));
    const T k = losing * options_.k_negative + (1 - losing) * options_.k_positive;
    const T lambda = losing * options_.lambda_negative + (1 - losing) * options_.lambda_positive;
    const T log_weight = lambda + k * in.log_ratios - lambda * in.ratios;
    const T slopes = -math::tame_exp_slope(log_weight) * in.advantages;
    return {.losses = slopes * in.logps, .by_logp = slopes};
  }
  static RuleProperties properties() { return {.policy_gradient = true, .stops_ratio = true}; }
  static PieceInfo info() {
    return {.kind = "vespo",
            .formula = "-sg(exp(lambda + k log w - lambda w)) A lp",
            .source = "arXiv:2602.10693",
            .elsewhere = {{"TRL 1.16", "loss_type vespo"}}};
  }
};

}  // namespace prefopt
