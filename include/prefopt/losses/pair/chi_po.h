// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

/// -log sigmoid(z), z = beta delta limited to [-2 limit, 2 limit]; 0: no limit.
/// Derivative: -beta sigmoid(-z) within the limits, 0 outside.
struct ClippedLogisticLink {
  double beta = 0.1;
  double limit = 0;

  template <class T>
  T value(const T& delta) const {
    const T z = beta * delta;
    return -math::log_sigmoid(limit > 0 ? T(math::clamp(z, 2 * limit)) : z);
  }

  template <class T>
  T derivative(const T& delta) const {
    const T z = beta * delta;
    const T slope = -beta * math::sigmoid(T(-z));
    if (limit == 0) return slope;
    return slope * math::is_positive(T(2 * limit - z)) * math::is_positive(T(2 * limit + z));
  }
};

struct ChiPoOptions {
  double beta = 0.1;
  double clip = 1;
  ScoreOptions score{.divergence = Divergence::kChiSquaredMix};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the mixed chi-squared penalty"}, beta, kBetaRange);
    v.real({"clip", "largest reward R: beta * delta is limited to [-2R, 2R]; 0: no limit"}, clip,
           Range::at_least(0));
    score.fields(v);
    pair.fields(v);
  }
};

/// chi-PO (2407.13399 algorithm 1): DPO with the link of the mixed chi-squared divergence,
///   -log sigmoid(clip(beta (s_w - s_l), [-2R, 2R])), s = Delta + gamma e^Delta
/// [batch] log-probs in nats. Derivative in Delta_w: -beta sigmoid(-z) (1 + gamma e^Delta_w) within
/// the limits, else 0. At Delta_w = Delta_l: log 2. Its pessimism keeps the policy near the data
/// under single-policy coverage. In the paper gamma multiplies the logarithm instead: its beta is
/// beta gamma here, its gamma 1 / gamma.
class ChiPoLoss : public PairwiseLoss<ChiPoLoss, ChiPoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  ClippedLogisticLink link() const { return {options_.beta, options_.clip}; }

  static LossProperties properties() {
    return {.log_ratios_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "chi_po",
            .aliases = {},
            .formula = "-logsigmoid(clip(beta*(s_w - s_l), +-2R)), s = Delta + gamma*exp(Delta)",
            .source = "arXiv:2407.13399 algorithm 1",
            .anchors = {{0, 0, 0.69314718055994531}, {20, 0, 0.12692801104297249}},
            .when_to_use = "Data that cover only a part of the possible completions.",
            .elsewhere = {}};
  }
};

}  // namespace prefopt
