// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct RpoOptions {
  double beta = 0.1;
  double eta = 1;
  Reduction reduction = Reduction::kTokenMean;
  NllTarget baseline = NllTarget::kChosen;
  double label_smoothing = 0;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"eta", "weight of the baseline's NLL: the paper's eta * beta", {"rpo_alpha"}}, eta,
           Range::at_least(0));
    reduction_field(v, reduction);
    v.choice({"baseline", "completion of the NLL"}, baseline, {"chosen", "rejected"});
    v.real({"label_smoothing", "assumed share of wrong labels (conservative DPO)"}, label_smoothing,
           kLabelSmoothingRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// Regularized preference optimization (2405.16436 eq. 4.8 with reduction sum and the paper's eta *
/// beta as eta; `sequence_mean` is 2404.19733 v3 eq. 1; `token_mean` is TRL's sigmoid + sft):
///   dpo + eta * NLL(baseline completion)
/// where the NLL is an adversarial regularizer that keeps the baseline likely, in the paper's
/// experiments the chosen completion. [batch] log-probs in nats; lengths needed unless `reduction`
/// is sum. Derivative in the baseline's logps: dpo's minus eta times the reduction's share of the
/// sequence. At delta = 0: log 2 + eta * NLL. Not reward-aware preference optimization
/// (2406.11704), also called RPO, which is rpo_sq, rpo_fwd_kl and rpo_bwd_kl here.
class RpoLoss : public PairwiseLoss<RpoLoss, RpoOptions> {
 public:
  /// Throws ConfigError for options of an NLL that has weight 0, and label probabilities with one.
  explicit RpoLoss(RpoOptions options = {}) : PairwiseLoss(std::move(options)) {
    detail::check_reduction(options_.reduction, options_.eta, "rpo");
    detail::refuse_idle(options_.baseline != NllTarget::kChosen && options_.eta == 0, "rpo",
                        "baseline", "its NLL has weight 0");
    detail::refuse_label_probs(options_.pair.use_label_probs && options_.eta != 0, "rpo");
  }

  LogisticLink link() const {
    return {options_.beta, 1 - options_.label_smoothing, options_.label_smoothing};
  }
  NllRegularizer regularizer() const {
    return {.weight = options_.eta, .reduction = options_.reduction, .baseline = options_.baseline};
  }

  static LossProperties properties() { return {.non_negative = true, .monotone = true}; }
  static LossInfo info() {
    return {.name = "rpo",
            .aliases = {},
            .formula = "dpo + eta * NLL(baseline)",
            .source = "arXiv:2405.16436 eq. 4.8",
            .anchors = {{0, 0, 2.6931471805599453}, {5, 5, 1.6931471805599453}},
            .when_to_use = "The likelihood of the chosen completions must not fall.",
            .elsewhere = {
                {"TRL", "[sigmoid, sft] with loss_weights [1, eta]"},
                {"NeMo-Aligner", "dpo with sft_loss_weight", "NLL as reduction sum by default"}}};
  }
};

}  // namespace prefopt
