// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

using NcaPairOptions = BetaOptions;

/// Noise contrastive alignment on pairs (2402.05369), w and l the log-ratios of the two sides:
///   -log sigmoid(beta w) - log sigmoid(-beta w) / 2 - log sigmoid(-beta l) / 2
/// [batch] log-probs in nats. Derivative in w: beta (sigmoid(beta w)/2 - sigmoid(-beta w)), in l:
/// beta sigmoid(beta l)/2. At w = l = 0: 2 log 2. The chosen log-ratio has its own optimum,
/// beta w = log 2, so its likelihood does not fall.
class NcaPairLoss : public PairwiseLoss<NcaPairLoss, NcaPairOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  SeparateLinks<LogisticLink, LogisticLink> link() const {
    return {{options_.beta, 1, 0.5}, {options_.beta, 0, 0.5}};
  }

  static LossProperties properties() { return {.log_ratios_only = true, .non_negative = true}; }
  static LossInfo info() {
    return {.name = "nca_pair",
            .aliases = {},
            .formula = "-logsigmoid(beta*w) - logsigmoid(-beta*w)/2 - logsigmoid(-beta*l)/2",
            .source = "arXiv:2402.05369",
            .anchors = {{0, 0, 1.3862943611198906}},
            .when_to_use = "The likelihood of the chosen completions must not fall.",
            .elsewhere = {{"TRL", "nca_pair"}}};
  }
};

}  // namespace prefopt
