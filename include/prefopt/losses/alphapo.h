// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/error.h"
#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

/// The logistic link of r(w) - r(l), r(a) = (1 - e^(-alpha a)) / alpha.
/// Slope in w: e^(-alpha w) times the link's.
struct AlphaRewardLink {
  LogisticLink link;
  double alpha = 0.25;

  template <class T>
  T value(const T& w, const T& l) const {
    return link.value(reward_gap(w, l));
  }

  template <class T>
  BasicSlopes<T> slopes(const T& w, const T& l) const {
    const T outer = link.derivative(reward_gap(w, l));
    return {outer * math::tame_exp_slope(T(-alpha * w)),
            -outer * math::tame_exp_slope(T(-alpha * l))};
  }

 private:
  template <class T>
  T reward_gap(const T& w, const T& l) const {
    return (math::tame_expm1(T(-alpha * l)) - math::tame_expm1(T(-alpha * w))) / alpha;
  }
};

struct AlphapoOptions {
  double beta = 2.5;
  double gamma = 0.25;
  double alpha = 0.25;
  double label_smoothing = 0;
  ScoreOptions score{.length_normalized = true, .reference_free = true};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "scale of the reward"}, beta, kBetaRange);
    v.real({"gamma", "margin that the scaled difference is to exceed", {"simpo_gamma"}}, gamma,
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
/// e^(-alpha a_w). At a_w = a_l: log(1 + e^gamma) for eps = 0.
class AlphapoLoss : public PairwiseLoss<AlphapoLoss, AlphapoOptions> {
 public:
  explicit AlphapoLoss(AlphapoOptions options = {}) : PairwiseLoss(std::move(options)) {
    if (options_.alpha == 0) {
      throw ConfigError(
          "alphapo: expected alpha other than 0, got 0; the reward divides by alpha, its limit is "
          "the loss 'simpo'");
    }
  }

  AlphaRewardLink link() const {
    const double eps = options_.label_smoothing;
    return {{options_.beta, 1 - eps, eps, options_.gamma}, options_.alpha};
  }

  static LossInfo info() {
    return {.name = "alphapo",
            .aliases = {},
            .formula = "-logsigmoid(beta*(r_w - r_l) - gamma), r = (1 - exp(-alpha*lp/n))/alpha",
            .source = "arXiv:2501.03884",
            .anchors = {{0, 0, 0.8259394198788436}, {5, 5, 0.8259394198788436}},
            .when_to_use = "As simpo, with a say in how fast likelihoods may fall.",
            .elsewhere = {{"TRL", "CPOTrainer with alpha",
                           "simpo_gamma is our gamma; adds cpo_alpha (default 1) times the NLL"}}};
  }
};

}  // namespace prefopt
