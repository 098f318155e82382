// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct CpoOptions {
  double beta = 0.1;
  double alpha = 1;
  DeltaLinkKind link = DeltaLinkKind::kSigmoid;
  double label_smoothing = 0;
  Reduction reduction = Reduction::kTokenMean;
  ScoreOptions score{.reference_free = true};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "scale of the log-prob difference"}, beta, kBetaRange);
    v.real({"alpha", "weight of the chosen completion's NLL", {"cpo_alpha"}}, alpha,
           Range::at_least(0));
    delta_link_field(v, link);
    v.real({"label_smoothing", "assumed share of wrong labels, for link = sigmoid"},
           label_smoothing, kLabelSmoothingRange);
    reduction_field(v, reduction);
    score.fields(v);
    pair.fields(v);
  }
};

/// Contrastive preference optimization (2401.08417 eq. 5), DPO with a uniform reference:
///   -log sigmoid(beta (lp_w - lp_l)) + alpha NLL(y_w)
/// or the hinge or squared link in place of the first term. [batch] log-probs in nats; lengths
/// needed unless `reduction` is sum. Derivative: the link's, less alpha times the reduction's share
/// in lp_w. At lp_w = lp_l: log 2 + alpha NLL.
class CpoLoss : public PairwiseLoss<CpoLoss, CpoOptions> {
 public:
  /// Throws ConfigError for label_smoothing with a link that has none.
  explicit CpoLoss(CpoOptions options = {}) : PairwiseLoss(std::move(options)) {
    detail::check_link_option(options_.link, "label_smoothing", options_.label_smoothing, "cpo");
  }

  DeltaLink link() const {
    return {
        .kind = options_.link, .beta = options_.beta, .label_smoothing = options_.label_smoothing};
  }
  NllRegularizer regularizer() const {
    return {.weight = options_.alpha, .reduction = options_.reduction};
  }

  static LossInfo info() {
    return {.name = "cpo",
            .aliases = {},
            .formula = "-logsigmoid(beta*(lp_w - lp_l)) + alpha*NLL(y_w)",
            .source = "arXiv:2401.08417 eq. 5",
            .anchors = {{0, 0, 2.6931471805599453}, {10, 0, 0.31326168751822284}},
            .when_to_use = "No reference, and the chosen completions are worth imitating.",
            .elsewhere = {{"TRL", "CPOTrainer sigmoid, hinge, ipo",
                           "NLL over the micro-batch; its ipo is length_normalized"},
                          {"Liger", "cpo"}}};
  }
};

}  // namespace prefopt
