// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/loss_base.h"

namespace prefopt {

struct CeOptions {
  double beta = 0.05;
  bool use_label_probs = false;
  bool use_weights = false;

  void fields(FieldVisitor& v) {
    v.real({"beta", "scale of the reward beta log(pi/pi_ref)"}, beta, kBetaRange);
    v.flag({"use_label_probs",
            "targets are the given label_probs, of single completions the probability to be right, "
            "in place of labels"},
           use_label_probs);
    v.flag({"use_weights", "multiply each row's loss by the given weights"}, use_weights);
  }
};

/// Cross-entropy of an outcome label l in [0, 1], on rows of one completion, with the reward r =
/// beta Delta, Delta = log pi - log pi_ref (implicit process rewards, 2412.01981 section 3):
///   -l log sigmoid(r) - (1 - l) log(1 - sigmoid(r)) = softplus(r) - l r
/// A model trained by it gives each token a reward, beta log(pi/pi_ref), and a prefix the value
/// beta log E_ref[e^(R / beta) | prefix] (proposition 3.1): see policy/token_rewards.h. DPO,
/// KTO and NCA train such models as well. [batch] log-probs in nats. Derivative in Delta: beta
/// (sigmoid(r) - l). At Delta = 0: log 2 for any label. `bco` is this loss less a running mean.
class CeLoss : public LossBase<CeLoss, CeOptions> {
 public:
  using LossBase::LossBase;

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const T rewards = options_.beta * (in.chosen_logps - in.ref_chosen_logps);
    const T& labels = options_.use_label_probs ? in.label_probs : in.labels;
    BasicLossOutput<T> out;
    out.losses = -math::log_sigmoid(T(-rewards)) - labels * rewards;
    out.grad_chosen = options_.beta * (math::sigmoid(rewards) - labels);
    if (options_.use_weights) {
      out.losses = out.losses * in.weights;
      out.grad_chosen = out.grad_chosen * in.weights;
    }
    finish(out, step_pairs(in));
    out.chosen_rewards = rewards;
    return out;
  }
  LossRequirements requirements() const {
    return {.inputs = InputSet{Input::chosen_logps, Input::ref_chosen_logps} |
                      (options_.use_label_probs ? Input::label_probs : Input::labels) |
                      when(options_.use_weights, Input::weights)};
  }

  static LossProperties properties() { return {.log_ratios_only = true, .non_negative = true}; }
  static LossInfo info() {
    return {.name = "ce",
            .aliases = {"implicit_prm"},
            .formula = "softplus(beta*Delta) - l*beta*Delta",
            .source = "arXiv:2412.01981 section 3",
            .anchors = {{0, 0, 0.69314718055994531}, {20, 0, 0.31326168751822284}},
            .when_to_use = "To train a process reward model on labels of whole answers.",
            .elsewhere = {{"ImplicitPRM authors' code", "ce", "its argument beta is 0.1"}}};
  }
};

}  // namespace prefopt
