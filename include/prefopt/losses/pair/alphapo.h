// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/error.h"
#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct AlphapoOptions {
  double beta = 2.5;
  double gamma = 0.25;
  double alpha = 0.25;
  double label_smoothing = 0;
  ScoreOptions score{.length_normalized = true, .reference_free = true};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "scale of the reward"}, beta, kBetaRange);
    v.real({"gamma", "margin that the scaled difference should exceed", {"simpo_gamma"}}, gamma,
           Range::at_least(0));
    v.real({"alpha", "shape of the reward; simpo is its limit at 0"}, alpha, Range::any());
    v.real({"label_smoothing", "assumed share of wrong labels"}, label_smoothing,
           kLabelSmoothingRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// AlphaPO (2501.03884), SimPO with another reward:
///   -(1 - eps) log sigmoid(z) - eps log sigmoid(-z), z = beta (r(a_w) - r(a_l)) - gamma
///   r(a) = (1 - e^(-alpha a)) / alpha, a = lp/n, eps = label_smoothing
/// [batch] log-probs in nats, lengths in tokens. Derivative in a_w: beta (sigmoid(z) - (1 - eps))
/// e^(-alpha a_w). At a_w = a_l: log(1 + e^gamma) for eps = 0. Rewards are beta r(a).
class AlphapoLoss : public PairwiseLoss<AlphapoLoss, AlphapoOptions> {
 public:
  explicit AlphapoLoss(AlphapoOptions options = {}) : PairwiseLoss(std::move(options)) {
    if (options_.alpha == 0) {
      throw ConfigError(
          "alphapo: expected alpha other than 0, got 0; the reward divides by alpha, its limit is "
          "the loss 'simpo'");
    }
    detail::check_shaped(options_.score, options_.alpha, "alphapo");
  }

  LogisticLink link() const {
    const double eps = options_.label_smoothing;
    return {options_.beta, 1 - eps, eps, options_.gamma};
  }
  ShapedScore score() const { return {{options_.score}, options_.alpha}; }

  static LossProperties properties() { return {.non_negative = true, .monotone = true}; }
  static LossInfo info() {
    return {
        .name = "alphapo",
        .aliases = {},
        .formula = "-logsigmoid(beta*(r_w - r_l) - gamma), r = (1 - exp(-alpha*lp/n))/alpha",
        .source = "arXiv:2501.03884",
        .anchors = {{0, 0, 0.8259394198788436}, {5, 5, 0.8259394198788436}},
        .when_to_use = "As simpo, with control over how fast likelihoods may fall.",
        .elsewhere = {
            {"TRL", "CPOTrainer alphapo, simpo with alpha",
             "beta 0.1, gamma 0.5 and alpha 0 by default, where it is simpo; simpo adds cpo_alpha "
             "(default 1) times the NLL, alphapo none; cpo has both, and other links"}}};
  }
};

}  // namespace prefopt
