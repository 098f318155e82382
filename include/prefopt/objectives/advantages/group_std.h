// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "prefopt/objectives/advantages/group_baseline.h"

namespace prefopt {

/// The mean that rewards are measured from.
enum class GroupBaseline { kMean, kLeaveOneOut };

struct GroupStdOptions {
  double epsilon = 1e-4;
  std::int64_t ddof = 1;
  GroupBaseline baseline = GroupBaseline::kMean;

  void fields(FieldVisitor& v) {
    v.real({"epsilon", "added to the standard deviation; TRL 1e-4, verl and NeMo-RL 1e-6"}, epsilon,
           Range::at_least(0));
    v.integer({"ddof", "degrees of freedom that the standard deviation takes; 1: unbiased"}, ddof,
              Range::between(0, 1));
    v.choice({"baseline", "the mean of the group, or of its other completions (NeMo-RL)"}, baseline,
             {"mean", "leave_one_out"});
  }
};

/// The reward in units of its group's spread: A_i = (r_i − r̄) / (s + ε), s the standard deviation
/// with `ddof` degrees of freedom taken (GRPO, 2402.03300). Equal rewards have 0. The division
/// erases the scale of rewards, so that prompts whose rewards hardly differ weigh as much as
/// others.
class GroupStd : public AdvantageBase<GroupStd, GroupStdOptions> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const {
    return detail::per_group(step, [this](const Eigen::ArrayXd& rewards) -> Eigen::ArrayXd {
      const double spread = detail::standard_deviation(rewards, options_.ddof);
      if (spread == 0) return rewards * 0;
      const auto k = static_cast<double>(rewards.size());
      const double scale = options_.baseline == GroupBaseline::kLeaveOneOut ? k / (k - 1) : 1;
      return detail::centred(rewards) * (scale / (spread + options_.epsilon));
    });
  }
  static AdvantageNeeds needs() { return {.groups = true}; }
  static AdvantageProperties properties() { return {.shift_free = true}; }
  static PieceInfo info() {
    return {.kind = "group_std",
            .formula = "(r - mean) / (std + epsilon)",
            .source = "arXiv:2402.03300",
            .elsewhere = {{"TRL 1.16", "scale_rewards group"},
                          {"verl 0.9", "adv_estimator grpo", "epsilon 1e-6"},
                          {"OpenRLHF 0.11", "advantage_estimator group_norm"}}};
  }
};

}  // namespace prefopt
