// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/error.h"
#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

/// -log sigmoid(z), z = beta (r(w) - r(l)) - gamma, r(a) = (1 - e^(-alpha a)) / alpha.
/// Slope in w: -beta sigmoid(-z) e^(-alpha w).
struct AlphaRewardLink {
  double beta = 2.5;
  double gamma = 0.25;
  double alpha = 0.25;

  template <class T>
  T value(const T& w, const T& l) const {
    return -math::log_sigmoid(argument(w, l));
  }

  template <class T>
  BasicSlopes<T> slopes(const T& w, const T& l) const {
    const T outer = beta * math::sigmoid(T(-argument(w, l)));
    return {-outer * math::tame_exp_slope(T(-alpha * w)),
            outer * math::tame_exp_slope(T(-alpha * l))};
  }

 private:
  template <class T>
  T argument(const T& w, const T& l) const {
    return beta / alpha * (math::tame_expm1(T(-alpha * l)) - math::tame_expm1(T(-alpha * w))) -
           gamma;
  }
};

struct AlphapoOptions {
  double beta = 2.5;
  double gamma = 0.25;
  double alpha = 0.25;
  ScoreOptions score{.length_normalized = true, .reference_free = true};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "scale of the reward"}, beta, Range::above(0));
    v.real({"gamma", "margin that the scaled difference is to exceed", {"simpo_gamma"}}, gamma,
           Range::at_least(0));
    v.real({"alpha", "shape of the reward; simpo is its limit at 0"}, alpha, Range::any());
    score.fields(v);
    pair.fields(v);
  }
};

/// AlphaPO (2501.03884), SimPO with another reward:
///   -log sigmoid(beta (r(a_w) - r(a_l)) - gamma), r(a) = (1 - e^(-alpha a)) / alpha, a = lp/n
/// [batch] log-probs in nats, lengths in tokens. Derivative in a_w: -beta sigmoid(-z) e^(-alpha
/// a_w). At a_w = a_l: log(1 + e^gamma).
class AlphapoLoss : public PairwiseLoss<AlphapoLoss, AlphapoOptions> {
 public:
  explicit AlphapoLoss(AlphapoOptions options = {}) : PairwiseLoss(std::move(options)) {
    if (options_.alpha == 0) {
      throw ConfigError(
          "alphapo: expected alpha other than 0, got 0; the reward divides by alpha, its limit is "
          "the loss 'simpo'");
    }
  }

  AlphaRewardLink link() const { return {options_.beta, options_.gamma, options_.alpha}; }

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
