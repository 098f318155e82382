// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/advantage.h"
#include "prefopt/objectives/values.h"

namespace prefopt {

struct ToGoOptions {
  double gamma = 1;
  bool whiten = false;

  void fields(FieldVisitor& v) {
    v.real({"gamma", "discount of a later token's reward"}, gamma, Range::between(0, 1));
    v.flag(
        {"whiten", "mean 0 and variance 1 over the acted tokens of all completions with a reward"},
        whiten);
  }
};

/// The rewards from a token on: A_t = Σ_{j ≥ t} γ^{j−t} r_j over acted tokens, the completion's
/// reward at the last of them (REINFORCE++, 2501.03262, with `whiten`).
class ToGo : public AdvantageBase<ToGo, ToGoOptions> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const {
    const Eigen::ArrayXd none = Eigen::ArrayXd::Zero(step.tokens());
    const Eigen::ArrayXd sums = generalized_advantages(step, none, options_.gamma, 1);
    return options_.whiten ? whitened(sums, step.rated_tokens()) : sums;
  }
  static AdvantageNeeds needs() { return {.per_token = true}; }
  static PieceInfo info() {
    return {.kind = "to_go",
            .formula = "sum over j >= t of gamma^(j-t) r_j",
            .source = "arXiv:2501.03262",
            .elsewhere = {{"verl 0.9", "adv_estimator reinforce_plus_plus"},
                          {"OpenRLHF 0.11", "advantage_estimator reinforce"}}};
  }
};

}  // namespace prefopt
