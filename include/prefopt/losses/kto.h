// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct KtoOptions {
  double beta = 0.1;
  double desirable_weight = 1;
  double undesirable_weight = 1;
  bool estimate_kl = true;
  bool use_weights = false;

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"desirable_weight", "weight of rows with label true"}, desirable_weight,
           Range::at_least(0));
    v.real({"undesirable_weight", "weight of rows with label false"}, undesirable_weight,
           Range::at_least(0));
    v.flag({"estimate_kl", "measure rewards from the policy's KL; else from 0 (apo_zero_unpaired)"},
           estimate_kl);
    v.flag({"use_weights", "multiply each row's loss by the given weights"}, use_weights);
  }
};

/// Kahneman-Tversky optimization (2402.01306 eq. 7), on rows of one completion and a label:
///   desirable:   lambda_D (1 - sigmoid(beta (Delta - z0)))
///   undesirable: lambda_U (1 - sigmoid(beta (z0 - Delta)))
///   z0 = max(0, mean over the step of log pi/pi_ref of another row's completion), no gradient
/// [batch] log-probs in nats; the batch is the whole optimizer step. Derivative in Delta: -+ lambda
/// beta s(1 - s), s the sigmoid. At Delta = z0 = 0: lambda/2. Rows need no partner, so they may be
/// shuffled freely.
class KtoLoss : public LossBase<KtoLoss, KtoOptions> {
 public:
  using LossBase::LossBase;

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const T sign = 2 * in.labels - 1;
    T weights =
        options_.desirable_weight * in.labels + options_.undesirable_weight * (1 - in.labels);
    if (options_.use_weights) weights = weights * in.weights;
    const T logratio = in.chosen_logps - in.ref_chosen_logps;
    BasicLossOutput<T> out;
    T z = options_.beta * logratio;
    if (options_.estimate_kl) {
      const auto rows = static_cast<double>(math::length(in.kl_logps));
      const ScalarOf<T> mean = math::sum(T(in.kl_logps - in.ref_kl_logps)) / rows;
      out.kl = math::relu(mean);
      z = options_.beta * (logratio - out.kl);
    }
    z = sign * z;
    out.losses = weights * math::sigmoid(T(-z));
    out.grad_chosen = -options_.beta * (sign * weights * math::sigmoid(z) * math::sigmoid(T(-z)));
    finish(out, step_pairs(in));
    out.chosen_rewards = options_.beta * logratio;
    return out;
  }
  LossRequirements requirements() const {
    return {.rejected = false,
            .labels = true,
            .kl_logps = options_.estimate_kl,
            .weights = options_.use_weights,
            .whole_step = options_.estimate_kl};
  }

  static LossInfo info() {
    return {
        .name = "kto",
        .aliases = {},
        .formula =
            "lambda_D (1 - sigmoid(beta*(Delta - z0))) or lambda_U (1 - "
            "sigmoid(beta*(z0 - Delta)))",
        .source = "arXiv:2402.01306 eq. 7",
        .anchors = {{0, 0, 0.5}, {10, 0, 0.2689414213699951}},
        .when_to_use = "Thumbs up or down in place of pairs.",
        .elsewhere = {{"TRL", "KTOTrainer", "z0 over each micro-batch"}, {"LLaMA-Factory", "kto"}}};
  }
};

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
    using Side = SigmoidLink<ScalarOf<T>>;
    // 1 - sigmoid(z) = sigmoid(-z)
    return SeparateLinks{Side{-options_.beta, 1, kl(rejected_side(in))},
                         Side{options_.beta, 1, kl(chosen_side(in))}};
  }
  LossRequirements requirements() const {
    LossRequirements needs = PairwiseLoss::requirements();
    needs.whole_step = true;
    return needs;
  }

  static LossInfo info() {
    return {.name = "kto_pair",
            .aliases = {},
            .formula = "1 - sigmoid(beta*(w - z_l)) + 1 - sigmoid(beta*(z_w - l))",
            .source = "arXiv:2402.01306 v1",
            .anchors = {{0, 0, 1}, {10, 10, 1}},
            .when_to_use = "KTO where pairs are at hand; kto itself needs no partner.",
            .elsewhere = {{"LLaMA-Factory", "kto_pair", "half of it"},
                          {"TRL before 0.9", "kto_pair", "half of it, gradient through z"}}};
  }
};

}  // namespace prefopt
