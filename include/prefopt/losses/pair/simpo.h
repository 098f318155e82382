// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct SimpoOptions {
  double beta = 2;
  double gamma = 1;
  double label_smoothing = 0;
  ScoreOptions score{.length_normalized = true, .reference_free = true};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "scale of the mean token log-prob"}, beta, kBetaRange);
    v.real({"gamma", "margin that beta * delta should exceed", {"simpo_gamma"}}, gamma,
           Range::at_least(0));
    v.real({"label_smoothing", "assumed share of wrong labels"}, label_smoothing,
           kLabelSmoothingRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// SimPO (2405.14734 eq. 6), without a reference, on mean token log-probs:
///   -(1 - eps) log sigmoid(z) - eps log sigmoid(-z), z = beta (lp_w/n_w - lp_l/n_l) - gamma
/// [batch] log-probs in nats, lengths in tokens. Derivative in lp_w: beta/n_w (sigmoid(z) - (1 -
/// eps)). At lp_w/n_w = lp_l/n_l: log(1 + e^gamma) for eps = 0.
class SimpoLoss : public PairwiseLoss<SimpoLoss, SimpoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  LogisticLink link() const {
    return {options_.beta, 1 - options_.label_smoothing, options_.label_smoothing, options_.gamma};
  }

  static LossProperties properties() { return {.non_negative = true, .monotone = true}; }
  static LossInfo info() {
    return {
        .name = "simpo",
        .aliases = {},
        .formula = "-logsigmoid(beta*(lp_w/n_w - lp_l/n_l) - gamma)",
        .source = "arXiv:2405.14734 eq. 6",
        .anchors = {{0, 0, 1.3132616875182228}, {2.5, 0, 0.69314718055994531}},
        .when_to_use = "No memory or time for a reference; needs a small learning rate.",
        .elsewhere = {{"TRL", "CPOTrainer simpo with cpo_alpha 0",
                       "beta 0.1 and gamma 0.5 by default; at other cpo_alpha (default 1) it is "
                       "our cpo"},
                      {"Liger", "simpo"},
                      {"LLaMA-Factory", "simpo", "simpo_gamma"}}};
  }
};

}  // namespace prefopt
