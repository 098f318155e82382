// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/error.h"
#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

enum class CpoLinkKind { kSigmoid, kHinge, kIpo };

/// One of three links, chosen when the loss is built.
struct CpoLink {
  CpoLinkKind kind = CpoLinkKind::kSigmoid;
  LogisticLink logistic = {};
  HingeLink hinge = {};
  SquaredLink squared = {};

  template <class T>
  T value(const T& delta) const {
    switch (kind) {
      case CpoLinkKind::kHinge:
        return hinge.value(delta);
      case CpoLinkKind::kIpo:
        return squared.value(delta);
      default:
        return logistic.value(delta);
    }
  }

  template <class T>
  T derivative(const T& delta) const {
    switch (kind) {
      case CpoLinkKind::kHinge:
        return hinge.derivative(delta);
      case CpoLinkKind::kIpo:
        return squared.derivative(delta);
      default:
        return logistic.derivative(delta);
    }
  }
};

struct CpoOptions {
  double beta = 0.1;
  double alpha = 1;
  CpoLinkKind link = CpoLinkKind::kSigmoid;
  double label_smoothing = 0;
  Reduction reduction = Reduction::kTokenMean;
  ScoreOptions score{.reference_free = true};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "scale of the log-prob difference"}, beta, Range::above(0));
    v.real({"alpha", "weight of the chosen completion's NLL", {"cpo_alpha"}}, alpha,
           Range::at_least(0));
    v.choice({"link", "loss of the difference"}, link, {"sigmoid", "hinge", "ipo"});
    v.real({"label_smoothing", "assumed share of wrong labels, for link = sigmoid"},
           label_smoothing, Range::half_open(0, 0.5));
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
    if (options_.label_smoothing != 0 && options_.link != CpoLinkKind::kSigmoid) {
      throw ConfigError(
          "cpo: expected label_smoothing 0 where link is not sigmoid, got another; the hinge and "
          "the squared link have no smoothing");
    }
  }

  CpoLink link() const {
    const double beta = options_.beta, eps = options_.label_smoothing;
    return {options_.link, {beta, 1 - eps, eps}, {beta}, {1 / (2 * beta)}};
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
