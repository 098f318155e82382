// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct HingeOptions {
  double beta = 0.1;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "1 / beta is the margin beyond which a pair has no gradient"}, beta,
           kBetaRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// Hinge loss (SLiC-HF, 2305.10425; with a reference as in RSO, 2309.06657):
///   max(0, 1 - beta delta)
/// RSO's "hinge-norm" (eq. 10) is this loss with beta = gamma; SLiC's (eq. 9) has `reference_free`.
/// [batch] log-probs in nats. Derivative in delta: -beta where beta delta < 1, else 0.
/// At delta = 0: 1.
class HingeLoss : public PairwiseLoss<HingeLoss, HingeOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  HingeLink link() const { return {.beta = options_.beta}; }

  static LossProperties properties() {
    return {
        .log_ratios_only = true, .difference_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "hinge",
            .aliases = {},
            .formula = "max(0, 1 - beta*delta)",
            .source = "arXiv:2305.10425, arXiv:2309.06657",
            .anchors = {{0, 0, 1}, {5, 0, 0.5}, {20, 0, 0}},
            .when_to_use = "Clean pairs, of which well separated ones should be left alone.",
            .elsewhere = {{"TRL", "hinge"}, {"LLaMA-Factory", "hinge"}}};
  }
};

}  // namespace prefopt
