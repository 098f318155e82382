// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

/// -log sigmoid(z), z = beta (w - l - lambda max(0, -w)).
/// Slope in w: -beta sigmoid(-z) (1 + lambda [w < 0]), in l: beta sigmoid(-z).
struct DpoPositiveLink {
  double beta = 0.1;
  double lambda = 50;

  template <class T>
  T value(const T& w, const T& l) const {
    return -math::log_sigmoid(argument(w, l));
  }

  template <class T>
  BasicSlopes<T> slopes(const T& w, const T& l) const {
    const T outer = beta * math::sigmoid(T(-argument(w, l)));
    return {-outer * (1 + lambda * math::is_positive(T(-w))), outer};
  }

 private:
  template <class T>
  T argument(const T& w, const T& l) const {
    return beta * (w - l - lambda * math::relu(T(-w)));
  }
};

struct DpoPositiveOptions {
  double beta = 0.1;
  double lambda = 50;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"lambda", "weight of a fall of the chosen log-prob", {"dpop_lambda"}}, lambda,
           Range::at_least(0));
    score.fields(v);
    pair.fields(v);
  }
};

/// DPO-positive (DPOP, Smaug, 2402.13228 eq. 3), w and l the log-ratios of the two sides:
///   -log sigmoid(beta (w - l - lambda max(0, -w)))
/// [batch] log-probs in nats. Derivative in w: -beta sigmoid(-z) (1 + lambda where w < 0). At w = l
/// = 0: log 2. Keeps the chosen completion at least as likely as under the reference.
class DpoPositiveLoss : public PairwiseLoss<DpoPositiveLoss, DpoPositiveOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  DpoPositiveLink link() const { return {options_.beta, options_.lambda}; }

  static LossProperties properties() {
    return {.log_ratios_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "dpo_positive",
            .aliases = {"dpop"},
            .formula = "-logsigmoid(beta*(w - l - lambda*max(0, -w)))",
            .source = "arXiv:2402.13228 eq. 3",
            .anchors = {{0, 0, 0.69314718055994531}, {10, 0, 0.31326168751822284}},
            .when_to_use = "Pairs that differ in a few tokens, where dpo lowers both.",
            .elsewhere = {{"PaddleNLP", "dpop_lambda"}}};
  }
};

}  // namespace prefopt
