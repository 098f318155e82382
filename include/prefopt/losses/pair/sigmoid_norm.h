// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct SigmoidNormOptions {
  double beta = 0.1;
  double label_smoothing = 0;
  ScoreOptions score{.length_normalized = true};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty per token"}, beta, kBetaRange);
    v.real({"label_smoothing", "assumed share of wrong labels"}, label_smoothing,
           kLabelSmoothingRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// Length-normalized DPO (Tulu 3, 2411.15124):
///   -(1 - eps) log sigmoid(z) - eps log sigmoid(-z), z = beta (s_w/n_w - s_l/n_l)
/// [batch] log-probs in nats, lengths in tokens. Derivative in Delta_w: 1/n_w times dpo's at this
/// z. At policy = reference: log 2. The scores are means over tokens, so beta is larger than dpo's
/// (Tulu 3: 5); the reported rewards beta Delta are sums. RSO's "sigmoid-norm" (2309.06657 eq. 8)
/// is another loss: dpo.
class SigmoidNormLoss : public PairwiseLoss<SigmoidNormLoss, SigmoidNormOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  LogisticLink link() const {
    return {options_.beta, 1 - options_.label_smoothing, options_.label_smoothing};
  }

  static LossProperties properties() {
    return {.log_ratios_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "sigmoid_norm",
            .aliases = {"dpo_norm"},
            .formula = "-logsigmoid(beta*(s_w/n_w - s_l/n_l))",
            .source = "arXiv:2411.15124",
            .anchors = {{0, 0, 0.69314718055994531}, {50, 0, 0.31326168751822284}},
            .when_to_use = "Completions of very different lengths.",
            .elsewhere = {{"TRL", "sigmoid_norm"},
                          {"open-instruct", "dpo_norm", "beta 5; rewards per token"}}};
  }
};

}  // namespace prefopt
