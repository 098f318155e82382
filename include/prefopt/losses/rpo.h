// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct RpoOptions {
  double beta = 0.1;
  double eta = 1;
  Reduction reduction = Reduction::kTokenMean;
  double label_smoothing = 0;
  ScoreOptions score = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, Range::above(0));
    v.real({"eta", "weight of the chosen completion's NLL", {"rpo_alpha"}}, eta,
           Range::at_least(0));
    v.choice({"reduction", "NLL over tokens of the step, per sequence mean, or per sequence sum"},
             reduction, {"token_mean", "sequence_mean", "sum"});
    v.real({"label_smoothing", "assumed share of wrong labels (conservative DPO)"}, label_smoothing,
           Range::half_open(0, 0.5));
    score.fields(v);
  }
};

/// Regularized preference optimization (2405.16436 eq. 3.4; `sequence_mean` is 2404.19733 eq. 2):
///   dpo + eta * NLL(chosen)
/// where the NLL is an adversarial regularizer that keeps the chosen completion likely. [batch]
/// log-probs in nats; lengths needed unless `reduction` is sum. Derivative in chosen_logps: dpo's
/// minus eta times the reduction's share of the sequence.
/// At delta = 0: log 2 + eta * NLL.
class RpoLoss : public PairwiseLoss<RpoLoss, RpoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  LogisticLink link() const {
    return {options_.beta, 1 - options_.label_smoothing, options_.label_smoothing};
  }
  NllRegularizer regularizer() const {
    return {.weight = options_.eta, .reduction = options_.reduction};
  }
  bool needs_lens() const { return options_.reduction != Reduction::kSum; }

  static LossInfo info() {
    return {.name = "rpo",
            .aliases = {},
            .formula = "dpo + eta * NLL(chosen)",
            .source = "arXiv:2405.16436 eq. 3.4",
            .anchors = {{0, 0, 2.6931471805599453}, {5, 5, 1.6931471805599453}}};
  }
};

}  // namespace prefopt
