// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"
#include "prefopt/losses/running_mean.h"

namespace prefopt {

/// -log sigmoid(beta w - m) - log sigmoid(-(beta l - m)), which passes `running` on.
template <class T>
struct BcoPairLink {
  double beta = 0.1;
  ScalarOf<T> shift = {};
  RunningMean<T> running = {};

  T value(const T& w, const T& l) const {
    return -math::log_sigmoid(T(beta * w - shift)) - math::log_sigmoid(T(shift - beta * l));
  }

  BasicSlopes<T> slopes(const T& w, const T& l) const {
    return {-beta * math::sigmoid(T(shift - beta * w)), beta * math::sigmoid(T(beta * l - shift))};
  }
};

struct BcoPairOptions {
  double beta = 0.1;
  bool running_delta = false;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.flag({"running_delta", "centre rewards at their running mean (the paper); else at 0 (TRL)"},
           running_delta);
    score.fields(v);
    pair.fields(v);
  }
};

/// Binary classifier optimization on pairs (2404.04656), w and l the log-ratios of the two sides:
///   -log sigmoid(beta w - m) - log sigmoid(-(beta l - m))
/// m = 0, or with `running_delta` the mean of all rewards beta w, beta l so far, including those of
/// this step, without gradient. [batch] log-probs in nats. Derivative in w: -beta sigmoid(m - beta
/// w), in l: beta sigmoid(beta l - m). At w = l = 0, m = 0: 2 log 2.
class BcoPairLoss : public PairwiseLoss<BcoPairLoss, BcoPairOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  template <class T>
  BcoPairLink<T> link(const BasicPairLogps<T>& in) const {
    const double beta = options_.beta;
    if (!options_.running_delta) {
      return {beta, math::scalar_like(in.chosen_logps, 0), in.running};
    }
    const Score scores = score();
    const T rewards =
        beta * (scores.of(chosen_side(in)).score + scores.of(rejected_side(in)).score);
    const RunningMean<T> running =
        updated(in.running, math::sum(rewards), 2.0 * static_cast<double>(math::length(rewards)));
    return {beta, running.mean, running};
  }
  LossRequirements requirements() const {
    LossRequirements needs = PairwiseLoss::requirements();
    needs.running_mean = options_.running_delta;
    needs.whole_step |= options_.running_delta;
    return needs;
  }
  GradientExceptions gradient_exceptions() const {
    return PairwiseLoss::gradient_exceptions() |
           GradientExceptions{.stops_part = options_.running_delta};
  }

  static LossProperties properties() {
    return {.log_ratios_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "bco_pair",
            .aliases = {},
            .formula = "-logsigmoid(beta*w - m) - logsigmoid(-(beta*l - m))",
            .source = "arXiv:2404.04656",
            .anchors = {{0, 0, 1.3862943611198906}, {10, -10, 0.62652337503644564}},
            .when_to_use =
                "Absolute quality matters as well as the order; often a small part of a mix.",
            .elsewhere = {{"TRL", "bco_pair", "m = 0"},
                          {"TRL up to 0.26, ms-swift", "bco_pair", "running_delta"},
                          {"LLaMA-Factory", "bco", "running_delta, counted by forward passes"}}};
  }
};

}  // namespace prefopt
