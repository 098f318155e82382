// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/advantage.h"

namespace prefopt {

/// The advantages that the rows have, a number a completion or one a token.
class GivenAdvantage : public AdvantageBase<GivenAdvantage> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const { return step.given; }
  static AdvantageNeeds needs() { return {.given = true}; }
  static AdvantageProperties properties() { return {.shift_free = true}; }
  static PieceInfo info() { return {.kind = "given", .formula = "advantage of the row"}; }
};

}  // namespace prefopt
