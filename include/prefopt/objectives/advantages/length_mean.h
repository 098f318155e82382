// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/objectives/advantages/group_baseline.h"

namespace prefopt {

/// The reward less the mean of its group weighed by length: A_i = r_i − Σ L_j r_j / Σ L_j (OPO,
/// 2505.23585), close to the baseline of least variance where gradients grow with length.
class LengthMean : public AdvantageBase<LengthMean> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const {
    const Eigen::ArrayXd lens = step.acted_tokens();
    Eigen::ArrayXd result = Eigen::ArrayXd::Zero(step.completions());
    for (const auto& group : step.rated_groups()) {
      // Measured from one reward, so that equal ones give exactly 0.
      const double first = step.rewards[group.front()];
      double weighed = 0;
      double weight = 0;
      for (const auto i : group) {
        weighed += lens[i] * (step.rewards[i] - first);
        weight += lens[i];
      }
      for (const auto i : group) {
        result[i] = step.rewards[i] - first - (weight > 0 ? weighed / weight : 0);
      }
    }
    return step.spread(result);
  }
  static AdvantageNeeds needs() { return {.groups = true}; }
  static AdvantageProperties properties() { return {.shift_free = true, .scales = true}; }
  static PieceInfo info() {
    return {.kind = "length_mean",
            .formula = "r - sum(L r) / sum(L)",
            .source = "arXiv:2505.23585",
            .elsewhere = {{"verl 0.9", "adv_estimator opo"}}};
  }
};

}  // namespace prefopt
