// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

/// -log sigmoid(w - l) + (w - t)^2 + (l + t)^2.
/// Slope in w: -sigmoid(l - w) + 2 (w - t), in l: sigmoid(l - w) + 2 (l + t).
struct CalibratedLink {
  double target = 5;

  template <class T>
  T value(const T& w, const T& l) const {
    return -math::log_sigmoid(T(w - l)) + math::square(T(w - target)) + math::square(T(l + target));
  }

  template <class T>
  BasicSlopes<T> slopes(const T& w, const T& l) const {
    const T wrong = math::sigmoid(T(l - w));
    return {2 * (w - target) - wrong, 2 * (l + target) + wrong};
  }
};

struct CalDpoOptions {
  double beta = 0.1;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta",
            "rewards beta w, beta l are pulled to +-1/2; 0.001 in the authors' runs (+-500 nats)"},
           beta, kBetaRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// Calibrated DPO (2412.14516 eq. 10), w and l the log-ratios of the two sides:
///   -log sigmoid(w - l) + (w - 1/(2 beta))^2 + (l + 1/(2 beta))^2
/// [batch] log-probs in nats. Derivatives: see CalibratedLink. At w = l = 0: log 2 + 1/(2 beta^2).
/// The logistic term has no beta; the squares give the rewards an absolute scale.
class CalDpoLoss : public PairwiseLoss<CalDpoLoss, CalDpoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  CalibratedLink link() const { return {1 / (2 * options_.beta)}; }

  static LossProperties properties() { return {.log_ratios_only = true, .non_negative = true}; }
  static LossInfo info() {
    return {.name = "cal_dpo",
            .aliases = {},
            .formula = "-logsigmoid(w - l) + (w - 1/(2 beta))^2 + (l + 1/(2 beta))^2",
            .source = "arXiv:2412.14516 eq. 10",
            .anchors = {{0, 0, 50.693147180559945}, {5, -5, 4.5398899216870535e-05}},
            .when_to_use = "Rewards should have an absolute meaning, and w must not fall.",
            .elsewhere = {{"Cal-DPO authors' code", "", "half of the squares"}}};
  }
};

}  // namespace prefopt
