// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct CpoOptions {
  double beta = 0.1;
  double alpha = 1;
  double gamma = 0;
  double reward_alpha = 0;
  DeltaLinkKind link = DeltaLinkKind::kSigmoid;
  double label_smoothing = 0;
  Reduction reduction = Reduction::kTokenMean;
  ScoreOptions score{.reference_free = true};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "scale of the log-prob difference"}, beta, kBetaRange);
    v.real({"alpha", "weight of the chosen completion's NLL", {"cpo_alpha"}}, alpha,
           Range::at_least(0));
    v.real({"gamma", "margin that beta * delta should exceed, for link = sigmoid", {"simpo_gamma"}},
           gamma, Range::at_least(0));
    v.real({"reward_alpha", "shape of AlphaPO's reward; at 0 the log-prob itself"}, reward_alpha,
           Range::any());
    delta_link_field(v, link);
    v.real({"label_smoothing", "assumed share of wrong labels, for link = sigmoid"},
           label_smoothing, kLabelSmoothingRange);
    reduction_field(v, reduction);
    score.fields(v);
    pair.fields(v);
  }
};

/// Contrastive preference optimization (2401.08417 eq. 5), DPO with a uniform reference:
///   -log sigmoid(beta (r_w - r_l) - gamma) + alpha NLL(y_w), r = lp
/// or the hinge or squared link in place of the first term. With `length_normalized`, r = lp/n, and
/// it is SimPO (gamma > 0) with an NLL. With `reward_alpha` a other than 0, r = (1 - e^(-a lp))/a,
/// AlphaPO's shape (2501.03884), of lp/n if `length_normalized`. [batch] log-probs in nats; lengths
/// needed for means and for the NLL unless `reduction` is sum. Derivative in lp_w: the link's times
/// that of r, e^(-a lp) (over n), less alpha times the reduction's share. At lp_w = lp_l: log(1 +
/// e^gamma) + alpha NLL. Rewards are beta r.
class CpoLoss : public PairwiseLoss<CpoLoss, CpoOptions> {
 public:
  /// Throws ConfigError for gamma or label_smoothing with a link without them, and for label
  /// probabilities with an NLL.
  explicit CpoLoss(CpoOptions options = {}) : PairwiseLoss(std::move(options)) {
    detail::check_link_option(options_.link, "gamma", options_.gamma, "cpo");
    detail::check_link_option(options_.link, "label_smoothing", options_.label_smoothing, "cpo");
    detail::check_reduction(options_.reduction, options_.alpha, "cpo");
    detail::check_shaped(options_.score, options_.reward_alpha, "cpo");
    detail::refuse_label_probs(options_.pair.use_label_probs && options_.alpha != 0, "cpo");
  }

  DeltaLink link() const {
    return {options_.link, options_.beta, options_.label_smoothing, options_.gamma};
  }
  ShapedScore score() const { return {{options_.score}, options_.reward_alpha}; }
  NllRegularizer regularizer() const {
    return {.weight = options_.alpha, .reduction = options_.reduction};
  }

  static LossProperties properties() { return {.non_negative = true, .monotone = true}; }
  static LossInfo info() {
    return {.name = "cpo",
            .aliases = {},
            .formula = "-logsigmoid(beta*(r_w - r_l) - gamma) + alpha*NLL(y_w), r = lp",
            .source = "arXiv:2401.08417 eq. 5",
            .anchors = {{0, 0, 2.6931471805599453}, {10, 0, 0.31326168751822284}},
            .when_to_use = "No reference, and the chosen completions are worth imitating.",
            .elsewhere = {{"TRL", "CPOTrainer sigmoid, hinge, ipo, simpo with cpo_alpha",
                           "NLL over the micro-batch; its ipo and simpo are length_normalized, its "
                           "alpha is our reward_alpha"},
                          {"Liger", "cpo"}}};
  }
};

}  // namespace prefopt
