// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/advantage.h"

namespace prefopt {

/// The reward less that of the greedy completion of the prompt: A_i = r_i − r(ȳ) (ReMax,
/// 2310.10505). Unbiased, as ȳ does not depend on the sample.
class GreedyBaseline : public AdvantageBase<GreedyBaseline> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const {
    return step.spread(step.rewards - step.greedy_rewards);
  }
  static AdvantageNeeds needs() { return {.greedy_rewards = true}; }
  static AdvantageProperties properties() { return {.scales = true}; }
  static PieceInfo info() {
    return {.kind = "greedy",
            .formula = "r - r(greedy)",
            .source = "arXiv:2310.10505",
            .elsewhere = {{"verl 0.9", "adv_estimator remax", "returns to go less the reward"}}};
  }
};

}  // namespace prefopt
