// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct FDpoOptions {
  double beta = 0.1;
  ScoreOptions score{.divergence = Divergence::kJensenShannon};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the divergence penalty"}, beta, kBetaRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// DPO under another divergence (2309.16240):
///   -log sigmoid(beta (s(Delta_w) - s(Delta_l)))
/// with the scores of losses/score.h. [batch] log-probs in nats.
/// Derivative in Delta_w: -beta sigmoid(-z) s'(Delta_w), z the argument of log sigmoid.
/// At Delta_w = Delta_l: log 2.
class FDpoLoss : public PairwiseLoss<FDpoLoss, FDpoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  LogisticLink link() const { return {.beta = options_.beta}; }

  static LossProperties properties() {
    return {.log_ratios_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {
        .name = "f_dpo",
        .aliases = {},
        .formula = "-logsigmoid(beta*(s(Delta_w) - s(Delta_l)))",
        .source = "arXiv:2309.16240",
        .anchors = {{0, 0, 0.69314718055994531}, {2, 2, 0.69314718055994531}},
        .when_to_use =
            "Diverse answers matter (forward KL, JS) more than the highest reward (reverse KL).",
        .elsewhere = {
            {"TRL", "f_divergence_type with sigmoid",
             "alpha_divergence limits its exponent to 80, without a gradient beyond, and is "
             "reverse_kl at a = 1"},
            {"TRL up to 0.26, ms-swift", "f_divergence_type with sigmoid",
             "f_alpha_divergence_coef is the paper's alpha, 1 - a"}}};
  }
};

}  // namespace prefopt
