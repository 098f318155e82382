// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "prefopt/objectives/advantages/group_baseline.h"

namespace prefopt {

struct SoftMeanOptions {
  double tau = 0.5;

  void fields(FieldVisitor& v) {
    v.real({"tau", "temperature of the mean; the smaller, the closer to the group's maximum"}, tau,
           Range::above(0));
  }
};

/// The reward less the soft mean of its group: A_i = r_i − τ log mean_j e^{r_j / τ} (Kimi k1.5,
/// 2501.12599 section 2.3.2; V* of A*-PO, 2505.20686).
class SoftMean : public AdvantageBase<SoftMean, SoftMeanOptions> {
 public:
  using AdvantageBase::AdvantageBase;

  Eigen::ArrayXd of(const RolloutStep& step) const {
    return detail::per_group(step, [this](const Eigen::ArrayXd& rewards) -> Eigen::ArrayXd {
      const double most = rewards.maxCoeff();
      const double mean = ((rewards - most) / options_.tau).exp().mean();
      return rewards - most - options_.tau * std::log(mean);
    });
  }
  static AdvantageNeeds needs() { return {.groups = true}; }
  static AdvantageProperties properties() { return {.shift_free = true}; }
  static PieceInfo info() {
    return {
        .kind = "soft_mean",
        .formula = "r - tau log mean exp(r / tau)",
        .source = "arXiv:2501.12599 section 2.3.2",
        .elsewhere = {{"TRL 1.16", "A2POTrainer", "its mean is over samples of the reference"}}};
  }
};

}  // namespace prefopt
