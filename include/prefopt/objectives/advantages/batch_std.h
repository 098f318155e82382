// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "prefopt/objectives/advantages/group_baseline.h"

namespace prefopt {

struct BatchStdOptions {
  double epsilon = 1e-4;

  void fields(FieldVisitor& v) {
    v.real({"epsilon", "added to the standard deviation"}, epsilon, Range::at_least(0));
  }
};

/// The reward less the mean of its group, in units of the spread of all rewards that are rated
/// together: A_i = (r_i − r̄_g) / (s + ε) (2508.08221).
class BatchStd : public AdvantageBase<BatchStd, BatchStdOptions> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const {
    std::vector<double> all;
    for (const double reward : step.rewards) {
      if (reward == reward) all.push_back(reward);
    }
    const Eigen::Map<const Eigen::ArrayXd> rated(all.data(), static_cast<Eigen::Index>(all.size()));
    const double spread = all.empty() ? 0 : detail::standard_deviation(rated, 1);
    return detail::per_group(step, [&](const Eigen::ArrayXd& rewards) -> Eigen::ArrayXd {
      if (spread == 0) return rewards * 0;
      return detail::centred(rewards) / (spread + options_.epsilon);
    });
  }
  static AdvantageNeeds needs() { return {.groups = true}; }
  static PieceInfo info() {
    return {.kind = "batch_std",
            .formula = "(r - group mean) / (std of the batch + epsilon)",
            .source = "arXiv:2508.08221",
            .elsewhere = {{"TRL 1.16", "scale_rewards batch"}}};
  }
};

}  // namespace prefopt
