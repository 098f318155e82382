// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/advantages/group_baseline.h"
#include "prefopt/objectives/values.h"

namespace prefopt {

/// The reward less the mean of its group, then whitened over all acted tokens that are rated
/// together, where a completion weighs by its length: REINFORCE++-baseline (2501.03262).
class WhitenTokens : public AdvantageBase<WhitenTokens> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const {
    return whitened(
        detail::per_group(step,
                          [](const Eigen::ArrayXd& rewards) { return detail::centred(rewards); }),
        step.rated_tokens());
  }
  static AdvantageNeeds needs() { return {.groups = true}; }
  static AdvantageProperties properties() { return {.shift_free = true}; }
  static PieceInfo info() {
    return {.kind = "whiten_tokens",
            .formula = "whitened over tokens (r - mean)",
            .source = "arXiv:2501.03262",
            .elsewhere = {{"verl 0.9", "adv_estimator reinforce_plus_plus_baseline"},
                          {"OpenRLHF 0.11", "advantage_estimator reinforce_baseline"}}};
  }
};

}  // namespace prefopt
