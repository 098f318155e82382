// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct RobustDpoOptions {
  double beta = 0.1;
  double label_smoothing = 0;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"label_smoothing", "rate at which labels are flipped"}, label_smoothing,
           kLabelSmoothingRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// Robust DPO (2403.00409): unbiased for the loss on clean labels when a share eps of the
/// labels is flipped,
///   [-(1 - eps) log sigmoid(beta delta) + eps log sigmoid(-beta delta)] / (1 - 2 eps)
/// [batch] log-probs in nats. Derivative in delta:
///   -beta [(1 - eps) sigmoid(-beta delta) + eps sigmoid(beta delta)] / (1 - 2 eps).
/// At delta = 0: log 2. Where eps > 0 it is unbounded below: as beta delta grows, the slope
/// tends to -eps beta / (1 - 2 eps).
class RobustDpoLoss : public PairwiseLoss<RobustDpoLoss, RobustDpoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  LogisticLink link() const {
    const double eps = options_.label_smoothing;
    return {options_.beta, (1 - eps) / (1 - 2 * eps), -eps / (1 - 2 * eps)};
  }

  static LossProperties properties() {
    return {
        .log_ratios_only = true, .difference_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {
        .name = "robust_dpo",
        .aliases = {"robust"},
        .formula = "[-(1-eps) logsigmoid(beta*delta) + eps logsigmoid(-beta*delta)] / (1 - 2 eps)",
        .source = "arXiv:2403.00409",
        .anchors = {{0, 0, 0.69314718055994531}, {10, 0, 0.31326168751822284}},
        .when_to_use = "Labels of which a known share is flipped.",
        .elsewhere = {{"TRL", "robust"}}};
  }
};

}  // namespace prefopt
