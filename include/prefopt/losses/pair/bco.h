// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/loss_base.h"
#include "prefopt/losses/running_mean.h"

namespace prefopt {

struct BcoOptions {
  double beta = 0.1;
  bool use_weights = false;

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.flag({"use_weights", "multiply each row's loss by the given weights, such as density ratios"},
           use_weights);
  }
};

/// Binary classifier optimization (2404.04656), on rows of one completion and a label:
///   desirable: -log sigmoid(beta Delta - m), undesirable: -log sigmoid(-(beta Delta - m))
/// m = mean of all rewards beta Delta so far, including those of this step, without gradient: all
/// rows count alike, as in TRL, so that it leans towards the label with more rows. The paper's
/// weights for a shift between the prompts of both labels are given as a column. [batch] log-probs
/// in nats; the batch is the whole optimizer step. Derivative in Delta: beta (sigmoid(beta Delta -
/// m) - label). At beta Delta = m: log 2.
class BcoLoss : public LossBase<BcoLoss, BcoOptions> {
 public:
  using LossBase::LossBase;

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const T rewards = options_.beta * (in.chosen_logps - in.ref_chosen_logps);
    BasicLossOutput<T> out;
    out.running =
        updated(in.running, math::sum(rewards), static_cast<double>(math::length(rewards)));
    const T sign = 2 * in.labels - 1;
    const T z = sign * (rewards - out.running.mean);
    out.losses = -math::log_sigmoid(z);
    out.grad_chosen = -options_.beta * (sign * math::sigmoid(T(-z)));
    if (options_.use_weights) {
      out.losses = out.losses * in.weights;
      out.grad_chosen = out.grad_chosen * in.weights;
    }
    finish(out, step_pairs(in));
    out.chosen_rewards = rewards;
    return out;
  }
  LossRequirements requirements() const {
    return {.inputs = InputSet{Input::chosen_logps, Input::ref_chosen_logps, Input::labels} |
                      when(options_.use_weights, Input::weights),
            .whole_step = true,
            .running_mean = true};
  }
  GradientExceptions gradient_exceptions() const { return {.stops_part = true}; }

  static LossProperties properties() { return {.log_ratios_only = true, .non_negative = true}; }
  static LossInfo info() {
    return {.name = "bco",
            .aliases = {},
            .formula = "-logsigmoid(+-(beta*Delta - m))",
            .source = "arXiv:2404.04656",
            .anchors = {{0, 0, 0.69314718055994531}, {10, 0, 0.69314718055994531}},
            .when_to_use = "Thumbs up or down, in particular with many of one kind.",
            .elsewhere = {{"TRL up to 1.10", "BCOTrainer", "fits the density ratios itself"}}};
  }
};

}  // namespace prefopt
