// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct IpoOptions {
  double beta = 0.1;
  ScoreOptions score{.length_normalized = true};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "the paper's tau: the margin aimed at is 1/(2 tau)", {"tau"}}, beta,
           kBetaRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// Identity preference optimization (2310.12036 eq. 17):
///   (delta - 1/(2 tau))^2, tau = beta
/// with scores divided by their token counts (`length_normalized`, as TRL) or not (the paper).
/// [batch] log-probs in nats; lengths needed for the former. Derivative in delta: 2 (delta - 1/(2
/// tau)). At delta = 0: 1/(4 tau^2), 25 for tau = 0.1.
/// With `use_label_probs` it is (delta - (2p - 1)/(2 tau))^2 and a constant. INPO (2407.00617 eq.
/// 8) is this loss with beta = eta, not length_normalized, on pairs of the policy of the round
/// before, with the reference log pi_ref^(tau/eta) pi_before^(1 - tau/eta), unnormalized, as the
/// normalizer cancels. On pairs of the policy itself its mean gradient is 4/tau times that of the
/// regularized preference of the policy over itself (2403.08635).
class IpoLoss : public PairwiseLoss<IpoLoss, IpoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  SquaredLink link() const { return {.target = 1 / (2 * options_.beta)}; }

  static LossProperties properties() { return {.log_ratios_only = true, .non_negative = true}; }
  static LossInfo info() {
    return {.name = "ipo",
            .aliases = {},
            .formula = "(delta - 1/(2*beta))^2",
            .source = "arXiv:2310.12036 eq. 17",
            .anchors = {{0, 0, 25}, {10, 0, 9}},
            .when_to_use = "Deterministic preferences, on which dpo would not stop.",
            .elsewhere = {{"TRL", "ipo", "always length_normalized"},
                          {"OpenRLHF", "ipo", "never length_normalized"}}};
  }
};

}  // namespace prefopt
