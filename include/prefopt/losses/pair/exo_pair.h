// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct ExoPairOptions {
  double beta = 0.1;
  double label_smoothing = 1e-3;
  bool trl_constants = false;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"label_smoothing", "share of wrong labels; keeps the target away from certainty"},
           label_smoothing,
           Range{.min = 0, .max = 0.5, .min_open = true, .max_open = true}.because(
               "the loss has log(label_smoothing), and from one half on labels say nothing"));
    v.flag({"trl_constants", "log(eps) and log(1 - eps) in float32, as in TRL"}, trl_constants);
    score.fields(v);
    pair.fields(v);
  }
};

/// Efficient exact optimization on pairs (EXO, 2402.00856 eq. 16): the reverse KL of the policy's
/// preference q = sigmoid(beta delta) from the labels' 1 - eps,
///   q (log q - log(1 - eps)) + (1 - q) (log(1 - q) - log eps)
/// with gradient through q. [batch] log-probs in nats. Derivative in delta: beta q (1 - q) (beta
/// delta - log((1 - eps)/eps)). At delta = 0: -log 2 - (log(1 - eps) + log eps)/2. Pairs that are
/// far off have a vanishing gradient: the loss is not convex.
class ExoPairLoss : public PairwiseLoss<ExoPairLoss, ExoPairOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  BernoulliKlLink<double> link() const {
    const double eps = options_.label_smoothing;
    if (!options_.trl_constants) return {options_.beta, std::log1p(-eps), std::log(eps)};
    const auto single = static_cast<float>(eps);
    return {options_.beta, std::log1p(-single), std::log(single)};
  }

  static LossProperties properties() {
    return {.log_ratios_only = true, .difference_only = true, .non_negative = true};
  }
  static LossInfo info() {
    return {
        .name = "exo_pair",
        .aliases = {},
        .formula = "q (log q - log(1-eps)) + (1-q) (log(1-q) - log eps), q = sigmoid(beta*delta)",
        .source = "arXiv:2402.00856 eq. 16",
        .anchors = {{0, 0, 2.761230709097915}, {10, 10, 2.761230709097915}},
        .when_to_use = "Mode-seeking: the policy settles on the preferred completions.",
        .elsewhere = {{"TRL", "exo_pair", "label_smoothing must be set"}}};
  }
};

}  // namespace prefopt
