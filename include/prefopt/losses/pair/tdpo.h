// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/losses/loss_base.h"

namespace prefopt {

enum class TdpoVariant { kTdpo1, kTdpo2 };

struct TdpoOptions {
  double beta = 0.1;
  double alpha = 0.5;
  TdpoVariant variant = TdpoVariant::kTdpo2;
  bool use_label_probs = false;
  bool use_weights = false;

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"alpha", "weight of the sequence KLs in tdpo2"}, alpha, Range::at_least(0));
    v.choice({"variant", "tdpo1: both KLs, gradient through both; tdpo2: gradient through D_l"},
             variant, {"tdpo1", "tdpo2"});
    // Added later: configs without it, and their hashes, are as they were.
    if (!v.writes() || use_label_probs) {
      v.flag({"use_label_probs", "weigh both orders of a pair by the given label_probs"},
             use_label_probs);
    }
    v.flag({"use_weights", "multiply each pair's loss by the given weights"}, use_weights);
  }
};

/// Token-level DPO (2404.11999 eqs. 15, 17). With D = sum over a completion's tokens of
/// KL(pi_ref || pi) and delta = Delta_w - Delta_l:
///   tdpo1: -log sigmoid(beta (delta - (D_l - D_w)))
///   tdpo2: -log sigmoid(beta (delta - alpha (D_l - stop(D_w))))
/// [batch] log-probs and KLs in nats. Derivative in delta: -beta sigmoid(-z); in D_l: alpha beta
/// sigmoid(-z); in D_w for tdpo1: -beta sigmoid(-z). At policy = reference: log 2. With
/// `use_label_probs` a pair counts as p times itself and 1 - p times itself with swapped labels.
class TdpoLoss : public LossBase<TdpoLoss, TdpoOptions> {
 public:
  /// Throws ConfigError for alpha in tdpo1, which has none.
  explicit TdpoLoss(TdpoOptions options = {}) : LossBase(std::move(options)) {
    detail::refuse_idle(
        options_.alpha != TdpoOptions{}.alpha && options_.variant == TdpoVariant::kTdpo1, "tdpo",
        "alpha", "it weighs the KLs in variant 'tdpo2' alone");
  }

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const bool first = options_.variant == TdpoVariant::kTdpo1;
    const double alpha = first ? 1 : options_.alpha;
    const T delta_w = in.chosen_logps - in.ref_chosen_logps;
    const T delta_l = in.rejected_logps - in.ref_rejected_logps;
    const T delta = delta_w - delta_l - alpha * (in.rejected_seq_kl - in.chosen_seq_kl);
    // Slopes of the pair as it is given and with swapped labels, whose argument is -delta.
    const LogisticLink link{.beta = options_.beta};
    BasicLossOutput<T> out;
    out.losses = link.value(delta);
    T given = link.derivative(delta), swapped = {};
    if (options_.use_label_probs) {
      const T& p = in.label_probs;
      out.losses = p * out.losses + (1 - p) * link.value(T(-delta));
      given = p * given;
      swapped = (1 - p) * link.derivative(T(-delta));
    }
    if (options_.use_weights) {
      out.losses = out.losses * in.weights;
      given = given * in.weights;
      if (options_.use_label_probs) swapped = swapped * in.weights;
    }
    const T slope = options_.use_label_probs ? T(given - swapped) : given;
    out.grad_chosen = slope;
    out.grad_rejected = -slope;
    out.grad_rejected_seq_kl = -alpha * (first ? slope : given);
    if (first) {
      out.grad_chosen_seq_kl = slope;
    } else if (options_.use_label_probs) {
      out.grad_chosen_seq_kl = -alpha * swapped;  // of the completion that is then rejected
    }
    finish(out, step_pairs(in));
    out.chosen_rewards = options_.beta * (delta_w + in.chosen_seq_kl);
    out.rejected_rewards = options_.beta * (delta_l + in.rejected_seq_kl);
    out.margins = out.chosen_rewards - out.rejected_rewards;
    return out;
  }
  LossRequirements requirements() const {
    return {.inputs = kPairLogps | kPairReferenceLogps |
                      InputSet{Input::chosen_seq_kl, Input::rejected_seq_kl} |
                      when(options_.use_label_probs, Input::label_probs) |
                      when(options_.use_weights, Input::weights)};
  }
  GradientExceptions gradient_exceptions() const {
    return {.stops_part = options_.variant == TdpoVariant::kTdpo2};
  }

  static LossProperties properties() {
    return {
        .log_ratios_only = true, .difference_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "tdpo",
            .aliases = {},
            .formula = "-logsigmoid(beta*(delta - alpha*(D_l - D_w)))",
            .source = "arXiv:2404.11999 eqs. 15, 17",
            .anchors = {{0, 0, 0.69314718055994531}, {10, 0, 0.31326168751822284}},
            .when_to_use = "The divergence must stay small token by token.",
            .elsewhere = {{"TDPO authors' code", "tdpo"}}};
  }
};

}  // namespace prefopt
