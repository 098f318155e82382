// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

/// (1 - g)(-log sigmoid(z)) + g e^-z, z = beta delta, g = sigmoid(z / tau).
/// Derivative in z: g' (e^-z + log sigmoid(z)) - (1 - g) sigmoid(-z) - g e^-z, g' = g (1 - g)/tau.
struct DiscopopLink {
  double beta = 0.1;
  double tau = 0.05;

  template <class T>
  T value(const T& delta) const {
    const T z = beta * delta;
    const T gate = z / tau;
    return -math::sigmoid(T(-gate)) * math::log_sigmoid(z) + math::sigmoid(gate) * exponential(z);
  }

  template <class T>
  T derivative(const T& delta) const {
    const T z = beta * delta;
    const T gate = z / tau;
    const T g = math::sigmoid(gate);
    const T rest = math::sigmoid(T(-gate));
    const T through_gate = g * rest / tau * (exponential(z) + math::log_sigmoid(z));
    return beta * (through_gate - rest * math::sigmoid(T(-z)) - g * math::tame_exp_slope(T(-z)));
  }

 private:
  // e^-z, as its tangent where that would overflow.
  template <class T>
  static T exponential(const T& z) {
    return 1 + math::capped_expm1(T(-z));
  }
};

struct DiscopopOptions {
  double beta = 0.05;
  double tau = 0.05;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"tau", "width of the transition from logistic to exponential", {"discopop_tau"}}, tau,
           Range::above(0));
    score.fields(v);
    pair.fields(v);
  }
};

/// DiscoPOP, the log-ratio modulated loss found by a language model (2406.08414 eq. 5):
///   (1 - g)(-log sigmoid(z)) + g e^-z, z = beta delta, g = sigmoid(z / tau)
/// [batch] log-probs in nats. Derivative: see DiscopopLink. At delta = 0: (log 2 + 1)/2. Logistic
/// where z is below 0, exponential above; not convex in between.
class DiscopopLoss : public PairwiseLoss<DiscopopLoss, DiscopopOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  DiscopopLink link() const { return {options_.beta, options_.tau}; }

  static LossProperties properties() {
    return {.log_ratios_only = true, .difference_only = true, .non_negative = true};
  }
  static LossInfo info() {
    return {.name = "discopop",
            .aliases = {},
            .formula = "(1-g)(-logsigmoid(z)) + g exp(-z), z = beta*delta, g = sigmoid(z/tau)",
            .source = "arXiv:2406.08414 eq. 5",
            .anchors = {{0, 0, 0.84657359027997264}, {3, 3, 0.84657359027997264}},
            .when_to_use = "Found by search; not convex, so use a small learning rate.",
            .elsewhere = {{"TRL", "discopop"}}};
  }
};

}  // namespace prefopt
