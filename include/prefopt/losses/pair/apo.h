// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

using ApoOptions = BetaOptions;

/// Anchored preference optimization, zero (2408.06266 eq. 7), w and l the log-ratios of the sides:
///   1 - sigmoid(beta w) + sigmoid(beta l)
/// for chosen completions better than the policy's own: raises w and lowers l. [batch] log-probs in
/// nats. Derivative in w: -beta s(1 - s), s = sigmoid(beta w); in l: beta s(1 - s) of l. At w = l =
/// 0: 1.
class ApoZeroLoss : public PairwiseLoss<ApoZeroLoss, ApoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  // 1 - sigmoid(z) = sigmoid(-z)
  SeparateLinks<SigmoidLink<>, SigmoidLink<>> link() const {
    return {{-options_.beta, 1}, {options_.beta, 1}};
  }

  static LossProperties properties() {
    return {.log_ratios_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "apo_zero",
            .aliases = {},
            .formula = "1 - sigmoid(beta*w) + sigmoid(beta*l)",
            .source = "arXiv:2408.06266 eq. 7",
            .anchors = {{0, 0, 1}, {10, 10, 1}},
            .when_to_use = "The chosen completions are better than the policy's own.",
            .elsewhere = {{"TRL", "apo_zero"}}};
  }
};

/// sigmoid(beta w) + 1 - sigmoid(beta (w - l))
struct ApoDownLink {
  double beta = 0.1;

  template <class T>
  T value(const T& w, const T& l) const {
    return math::sigmoid(T(beta * w)) + math::sigmoid(T(beta * (l - w)));
  }

  template <class T>
  BasicSlopes<T> slopes(const T& w, const T& l) const {
    const T z = beta * (w - l);
    const T fall = beta * (math::sigmoid(z) * math::sigmoid(T(-z)));
    const T likelihood = beta * (math::sigmoid(T(beta * w)) * math::sigmoid(T(-beta * w)));
    return {likelihood - fall, fall};
  }
};

/// Anchored preference optimization, down (2408.06266 eq. 8):
///   sigmoid(beta w) + 1 - sigmoid(beta (w - l))
/// for chosen completions worse than the policy's own: lowers both, the rejected one faster.
/// [batch] log-probs in nats. Derivative in l: beta s(1 - s), s = sigmoid(beta (w - l)); in w: beta
/// t(1 - t) less that, t = sigmoid(beta w). At w = l = 0: 1.
class ApoDownLoss : public PairwiseLoss<ApoDownLoss, ApoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  ApoDownLink link() const { return {options_.beta}; }

  static LossProperties properties() { return {.log_ratios_only = true, .non_negative = true}; }
  static LossInfo info() {
    return {.name = "apo_down",
            .aliases = {},
            .formula = "sigmoid(beta*w) + 1 - sigmoid(beta*(w - l))",
            .source = "arXiv:2408.06266 eq. 8",
            .anchors = {{0, 0, 1}, {10, 10, 1.2310585786300049}},
            .when_to_use = "The policy's own completions are better than the chosen ones.",
            .elsewhere = {{"TRL", "apo_down"}}};
  }
};

}  // namespace prefopt
