// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct XpoOptions {
  double beta = 0.1;
  double alpha = 1e-5;
  DeltaLinkKind link = DeltaLinkKind::kSigmoid;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"alpha", "weight of the optimism"}, alpha, Range::at_least(0));
    v.choice({"link", "loss of the difference", {"loss"}}, link, {"sigmoid", "hinge", "ipo"});
    score.fields(v);
    pair.fields(v);
  }
};

/// Exploratory preference optimization (2405.21046 algorithm 1; sign and form as in TRL 0.29.1 and
/// OAT, the number of the equation is unconfirmed):
///   -log sigmoid(beta delta) + alpha log pi(y~)
/// on online pairs of a completion of the policy and one, y~, of the reference, over all rounds so
/// far. `from_reference` says which side y~ is; a row without one has no second term. Or the hinge
/// or squared link in place of the first term; the latter is TRL's `ipo`. [batch] log-probs in
/// nats. Derivative: dpo's plus alpha on the side of y~. At delta = 0: log 2 + alpha log pi(y~).
/// Identical completions keep the second term, as in TRL; OAT drops the row. The loss is bounded
/// from below only where log pi is: few steps, or bounded rewards. `vpo` with mode online,
/// calibration reference_side and alpha / beta is the same up to a constant.
class XpoLoss : public PairwiseLoss<XpoLoss, XpoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  DeltaLink link() const { return {.kind = options_.link, .beta = options_.beta}; }
  ValueIncentive regularizer() const {
    return {.weight = options_.alpha,
            .calibration = Calibration::kReferenceSide,
            .of_policy_alone = true};
  }

  static LossProperties properties() { return {}; }
  static LossInfo info() {
    return {
        .name = "xpo",
        .aliases = {},
        .formula = "dpo + alpha * log pi of the reference's completion",
        .source = "arXiv:2405.21046 algorithm 1",
        .anchors = {{0, 0, 0.69304718055994531}, {10, 10, 0.69314718055994531}},
        .when_to_use =
            "Online rounds in which a good completion may be one that the policy hardly writes.",
        .elsewhere = {{"TRL up to 0.29", "XPOTrainer", "a tie makes the policy's side chosen"},
                      {"OAT", "xpo", "without rows of identical completions"}}};
  }
};

}  // namespace prefopt
