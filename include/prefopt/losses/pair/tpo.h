// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct TpoOptions {
  double beta = 0.01;
  double alpha = 1;
  double gamma = 0;
  DeltaLinkKind link = DeltaLinkKind::kSigmoid;
  double label_smoothing = 0;
  Reduction reduction = Reduction::kTokenMean;
  ScoreOptions score{.reference_free = true};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "scale of the log-prob difference"}, beta, kBetaRange);
    v.real({"alpha", "weight of the gold completion's NLL", {"tpo_alpha"}}, alpha,
           Range::at_least(0));
    v.real({"gamma", "margin that beta * delta should exceed (TPO-L)", {"tpo_l_gamma"}}, gamma,
           Range::at_least(0));
    delta_link_field(v, link);
    v.real({"label_smoothing", "assumed share of wrong labels, for link = sigmoid"},
           label_smoothing, kLabelSmoothingRange);
    reduction_field(v, reduction);
    score.fields(v);
    pair.fields(v);
  }
};

/// Triple preference optimization (2405.16681), on rows with a third, gold completion y_g:
///   -log sigmoid(beta (lp_w - lp_l) - gamma) + alpha NLL(y_g)
/// or the hinge or squared link in place of the first term. TPO-L, the preset `tpo-l`, is
/// `length_normalized` with gamma > 0. At alpha 0 there is no gold completion. [batch] log-probs in
/// nats; lengths needed unless `reduction` is sum. Derivative: the link's, and -alpha times the
/// reduction's share in gold_logps. At lp_w = lp_l: log(1 + e^gamma) + alpha NLL.
class TpoLoss : public PairwiseLoss<TpoLoss, TpoOptions> {
 public:
  /// Throws ConfigError for gamma or label_smoothing with a link without them.
  explicit TpoLoss(TpoOptions options = {}) : PairwiseLoss(std::move(options)) {
    detail::check_link_option(options_.link, "gamma", options_.gamma, "tpo");
    detail::check_link_option(options_.link, "label_smoothing", options_.label_smoothing, "tpo");
    detail::check_reduction(options_.reduction, options_.alpha, "tpo");
  }

  DeltaLink link() const {
    return {options_.link, options_.beta, options_.label_smoothing, options_.gamma};
  }
  NllRegularizer regularizer() const {
    return {
        .weight = options_.alpha, .reduction = options_.reduction, .baseline = NllTarget::kGold};
  }

  static LossProperties properties() { return {.non_negative = true, .monotone = true}; }
  static LossInfo info() {
    return {.name = "tpo",
            .aliases = {},
            .formula = "-logsigmoid(beta*(lp_w - lp_l) - gamma) + alpha*NLL(y_gold)",
            .source = "arXiv:2405.16681",
            .anchors = {{0, 0, 2.6931471805599453}, {100, 0, 2.3132616875182228}},
            .when_to_use = "A gold answer in addition to two ranked ones, in one stage.",
            .elsewhere = {{"TRL", "TPOTrainer sigmoid, hinge, ipo, tpo-l",
                           "tpo-l is length_normalized with gamma, ipo is length_normalized"}},
            .presets = {{"tpo-l", R"({"length_normalized": true, "gamma": 0.5})"}}};
  }
};

}  // namespace prefopt
