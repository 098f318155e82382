// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/advantage.h"
#include "prefopt/objectives/values.h"

namespace prefopt {

struct GaeOptions {
  double gamma = 1;
  double lambda = 0.95;
  bool whiten = false;

  void fields(FieldVisitor& v) {
    v.real({"gamma", "discount of a later token's reward"}, gamma, Range::between(0, 1));
    v.real({"lambda", "weight of later errors of the values; 1: returns less the value"}, lambda,
           Range::between(0, 1));
    v.flag(
        {"whiten", "mean 0 and variance 1 over the acted tokens of all completions with a reward"},
        whiten);
  }
};

/// Generalized advantage estimation: δ_t = r_t + γ V_{t+1} − V_t, A_t = Σ_l (γλ)^l δ_{t+l}
/// (1506.02438; 2307.04964 eq. 9), V = 0 after the last acted token, others passed over.
class Gae : public AdvantageBase<Gae, GaeOptions> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const {
    const Eigen::ArrayXd sums = errors(step);
    return options_.whiten ? whitened(sums, step.rated_tokens()) : sums;
  }
  /// Returns A_t + V_t, with A_t before it is whitened.
  Eigen::ArrayXd returns(const RolloutStep& step) const { return errors(step) + step.values; }
  static AdvantageNeeds needs() { return {.values = true, .per_token = true}; }
  static PieceInfo info() {
    return {.kind = "gae",
            .formula = "sum of (gamma lambda)^l (r + gamma V' - V)",
            .source = "arXiv:2307.04964 eq. 9",
            .elsewhere = {{"verl 0.9", "adv_estimator gae"},
                          {"OpenRLHF 0.11", "advantage_estimator gae"},
                          {"NeMo-RL", "GAE"}}};
  }

 private:
  Eigen::ArrayXd errors(const RolloutStep& step) const {
    return generalized_advantages(step, step.values, options_.gamma, options_.lambda);
  }
};

}  // namespace prefopt
