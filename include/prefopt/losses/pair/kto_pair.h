// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

using KtoPairOptions = BetaOptions;

/// KTO on pairs (2402.01306, first version), w and l the log-ratios of the two sides:
///   1 - sigmoid(beta (w - z_l)) + 1 - sigmoid(beta (z_w - l))
///   z_w = max(0, mean of w over the step), z_l likewise, no gradient
/// [batch] log-probs in nats; the batch is the whole optimizer step, and with `use_label_probs`
/// both orders of a pair have its z. Derivative in w: -beta s(1 - s), s the first sigmoid; in l:
/// beta s(1 - s) of the second. At w = l = 0: 1.
class KtoPairLoss : public PairwiseLoss<KtoPairLoss, KtoPairOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  template <class T>
  auto link(const BasicPairLogps<T>& in) const {
    const auto pairs = static_cast<double>(math::length(in.chosen_logps));
    const Score scores = score();
    const auto kl = [&](const BasicSideLogps<T>& side) {
      return math::relu(ScalarOf<T>(math::sum(scores.of(side).score) / pairs));
    };
    // 1 - sigmoid(z) = sigmoid(-z)
    const SigmoidLink<ScalarOf<T>> chosen{
        .beta = -options_.beta, .weight = 1, .center = kl(rejected_side(in))};
    const SigmoidLink<ScalarOf<T>> rejected{
        .beta = options_.beta, .weight = 1, .center = kl(chosen_side(in))};
    return SeparateLinks{chosen, rejected};
  }
  LossRequirements requirements() const {
    LossRequirements needs = PairwiseLoss::requirements();
    needs.whole_step = true;
    return needs;
  }
  GradientExceptions gradient_exceptions() const {
    return PairwiseLoss::gradient_exceptions() | GradientExceptions{.stops_part = true};
  }

  static LossProperties properties() {
    return {.log_ratios_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "kto_pair",
            .aliases = {},
            .formula = "1 - sigmoid(beta*(w - z_l)) + 1 - sigmoid(beta*(z_w - l))",
            .source = "arXiv:2402.01306 v1",
            .anchors = {{0, 0, 1}, {10, 10, 1}},
            .when_to_use = "KTO for data of pairs; kto itself needs no partner.",
            .elsewhere = {
                {"TRL before 0.9", "kto_pair", "half of it, gradient through z"},
                {"PaddleNLP, SPPO authors' code", "kto_pair", "half of it, gradient through z"}}};
  }
};

}  // namespace prefopt
