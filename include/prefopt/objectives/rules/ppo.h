// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/token_rule.h"

namespace prefopt {

struct PpoOptions {
  double low = 0.2;
  double high = 0.2;
  double delta = 0;
  double dual = 0;

  void fields(FieldVisitor& v) {
    v.real({"low", "the ratio counts down to 1 - low"}, low, Range::between(0, 1));
    v.real({"high", "the ratio counts up to 1 + high"}, high, Range::at_least(0));
    v.real({"delta", "largest ratio of negative advantages (two-sided); 0: no limit"}, delta,
           Range::at_least(0));
    v.real({"dual", "a negative advantage A loses at most -dual A; 0: no limit"}, dual,
           Range::at_least(0));
  }
};

/// f = −min(ρ A, clip(ρ, 1 − low, 1 + high) A), f' = −ρ A on the unlimited branch, else 0
/// (1707.06347 eq. 7). With δ the first ρ is min(ρ, δ) (2505.07291); with c, f ≤ −c A where A < 0
/// (1912.09729 eq. 5).
class PpoRule : public RuleBase<PpoRule, PpoOptions> {
 public:
  /// Throws ConfigError for a delta below 1 + high, where a limit would hold before the clip, and
  /// for a dual limit that is set and not above 1.
  explicit PpoRule(PpoOptions options = {}) : RuleBase(options) {
    detail::check_upper_limit("ppo", options_.delta, options_.high);
    detail::check_ratio_limit("ppo", "dual", options_.dual);
  }

  template <class T>
  RuleOutputs<T> formula(const RuleInputs<T>& in) const {
    const T& ratio = in.ratios;
    const T gains = math::is_positive(in.advantages);
    const T below =
        math::is_positive(T((1 - options_.low) - ratio)) * math::is_positive(T(-in.advantages));
    const T above = math::is_positive(T(ratio - (1 + options_.high))) * gains;
    T capped = math::constant(ratio, 0);  // 1 where delta or dual limit a negative advantage
    T counted = below * (1 - options_.low) + above * (1 + options_.high) +
                (1 - below) * (1 - above) * ratio;
    for (const double most : {options_.delta, options_.dual}) {
      if (most == 0) continue;
      const T over = math::is_positive(T(counted - most)) * math::is_positive(T(-in.advantages));
      counted = counted * (1 - over) + most * over;
      capped = capped + over * (1 - capped);
    }
    const T free = (1 - below) * (1 - above) * (1 - capped);
    return {.losses = -counted * in.advantages,
            .by_log_ratio = -in.ratio_slopes * in.advantages * free,
            .limited_below = below,
            .limited_above = above};
  }
  static RuleProperties properties() { return {.policy_gradient = true}; }
  static PieceInfo info() {
    return {.kind = "ppo",
            .formula = "-min(ratio A, clip(ratio, 1 - low, 1 + high) A)",
            .source = "arXiv:1707.06347 eq. 7",
            .elsewhere = {{"TRL 1.16", "epsilon, epsilon_high, delta"},
                          {"verl 0.9", "clip_ratio_low, clip_ratio_high, clip_ratio_c"},
                          {"NeMo-RL", "ClippedPGLossFn, ratio_clip_c"}}};
  }
};

}  // namespace prefopt
