// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/advantages/group_baseline.h"

namespace prefopt {

/// The reward less the mean of its group: A_i = r_i − r̄ (Dr. GRPO, 2503.20783). Exactly (k − 1) / k
/// of leave_one_out.
class GroupMean : public AdvantageBase<GroupMean> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const {
    return detail::per_group(
        step, [](const Eigen::ArrayXd& rewards) { return detail::centred(rewards); });
  }
  static AdvantageNeeds needs() { return {.groups = true}; }
  static AdvantageProperties properties() { return {.shift_free = true, .scales = true}; }
  static PieceInfo info() {
    return {.kind = "group_mean",
            .formula = "r - mean",
            .source = "arXiv:2503.20783",
            .elsewhere = {{"TRL 1.16", "scale_rewards none"},
                          {"verl 0.9", "norm_adv_by_std_in_grpo False"},
                          {"OpenRLHF 0.11", "advantage_estimator dr_grpo"}}};
  }
};

}  // namespace prefopt
