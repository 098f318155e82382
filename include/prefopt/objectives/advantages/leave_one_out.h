// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/advantages/group_baseline.h"

namespace prefopt {

/// The reward less the mean of the prompt's other completions: A_i = (r_i − r̄) k / (k − 1) (RLOO,
/// 2402.14740). Unbiased.
class LeaveOneOut : public AdvantageBase<LeaveOneOut> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const {
    return detail::per_group(step, [](const Eigen::ArrayXd& rewards) -> Eigen::ArrayXd {
      const auto k = static_cast<double>(rewards.size());
      return k < 2 ? Eigen::ArrayXd(rewards * 0) : detail::centred(rewards) * (k / (k - 1));
    });
  }
  static AdvantageNeeds needs() { return {.groups = true}; }
  static AdvantageProperties properties() { return {.shift_free = true, .scales = true}; }
  static PieceInfo info() {
    return {.kind = "leave_one_out",
            .formula = "(r - mean) k / (k - 1)",
            .source = "arXiv:2402.14740",
            .elsewhere = {{"TRL 1.16", "RLOOTrainer"},
                          {"verl 0.9", "adv_estimator rloo"},
                          {"OpenRLHF 0.11", "advantage_estimator rloo"},
                          {"NeMo-RL", "use_leave_one_out_baseline"}}};
  }
};

}  // namespace prefopt
