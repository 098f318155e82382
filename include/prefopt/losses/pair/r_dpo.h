// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

/// link(delta + addend), an addend for each row.
template <class Link, class T>
struct RaisedLink {
  Link link;
  T addend;

  T value(const T& delta) const { return link.value(T(delta + addend)); }
  T derivative(const T& delta) const { return link.derivative(T(delta + addend)); }
  RaisedLink swapped() const { return {link, -addend}; }
};

struct RDpoOptions {
  double beta = 0.1;
  double alpha = 0.01;
  double label_smoothing = 0;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"alpha", "cost of a token, in reward"}, alpha, Range::at_least(0));
    v.real({"label_smoothing", "assumed share of wrong labels"}, label_smoothing,
           kLabelSmoothingRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// Length-regularized DPO (R-DPO, 2403.19159): rewards less alpha per token,
///   -(1 - eps) log sigmoid(z) - eps log sigmoid(-z), z = beta delta + alpha (n_w - n_l)
/// [batch] log-probs in nats, lengths in tokens. Derivative in delta: dpo's. At delta = 0 and equal
/// lengths: log 2. A longer chosen completion needs a smaller gap, since its reward has already
/// paid for its length.
class RDpoLoss : public PairwiseLoss<RDpoLoss, RDpoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  template <class T>
  RaisedLink<LogisticLink, T> link(const BasicPairLogps<T>& in) const {
    const double eps = options_.label_smoothing;
    return {{options_.beta, 1 - eps, eps},
            options_.alpha / options_.beta * (in.chosen_lens - in.rejected_lens)};
  }
  LossRequirements requirements() const {
    LossRequirements needs = PairwiseLoss::requirements();
    needs.inputs |= kPairLens;
    return needs;
  }

  static LossProperties properties() {
    return {
        .log_ratios_only = true, .difference_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "r_dpo",
            .aliases = {},
            .formula = "-logsigmoid(beta*delta + alpha*(n_w - n_l))",
            .source = "arXiv:2403.19159",
            .anchors = {{0, 0, 0.69314718055994531}, {10, 0, 0.31326168751822284}},
            .when_to_use = "The policy grows verbose because longer completions were preferred."};
  }
};

}  // namespace prefopt
