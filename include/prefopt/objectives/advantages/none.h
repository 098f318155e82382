// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/advantage.h"

namespace prefopt {

/// The reward itself: A_i = r_i (REINFORCE).
class NoBaseline : public AdvantageBase<NoBaseline> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const { return step.spread(step.rewards); }
  static AdvantageProperties properties() { return {.scales = true}; }
  static PieceInfo info() { return {.kind = "none", .formula = "r", .source = "Williams 1992"}; }
};

}  // namespace prefopt
