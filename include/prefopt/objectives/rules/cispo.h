// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/token_rule.h"

namespace prefopt {

struct CispoOptions {
  double min = 0;
  double max = 5;

  void fields(FieldVisitor& v) {
    v.real({"min", "least ratio, absolute; verl 1 - epsilon"}, min, Range::at_least(0));
    v.real({"max", "largest ratio, absolute; TRL epsilon_high, verl 1 + epsilon"}, max,
           Range::above(0));
  }
};

/// f = −sg(clip(ρ, min, max)) A log π, whose gradient no limit takes away: f' = −clip(ρ) A in the
/// token's log-prob (CISPO, 2506.13585).
class CispoRule : public RuleBase<CispoRule, CispoOptions> {
 public:
  /// Throws ConfigError for min above max.
  explicit CispoRule(CispoOptions options = {}) : RuleBase(options) {
    detail::check_ratio_range("cispo", options_.min, options_.max);
  }

  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    const T above = math::is_positive(T(in.ratios - options_.max));
    const T below = math::is_positive(T(options_.min - in.ratios));
    const T weights =
        (1 - above) * (1 - below) * in.ratios + above * options_.max + below * options_.min;
    const T slopes = -weights * in.advantages;
    return {.losses = slopes * in.logps,
            .by_logp = slopes,
            .limited_below = below,
            .limited_above = above};
  }
  RuleProperties properties() const {
    return {.policy_gradient = options_.min <= 1 && options_.max >= 1, .stops_ratio = true};
  }
  static PieceInfo info() {
    return {.kind = "cispo",
            .formula = "-sg(clip(ratio, min, max)) A lp",
            .source = "arXiv:2506.13585",
            .elsewhere = {{"TRL 1.16", "loss_type cispo", "no least ratio"},
                          {"verl 0.9", "loss_mode cispo"},
                          {"NeMo-RL", "use_cispo"}}};
  }
};

}  // namespace prefopt
