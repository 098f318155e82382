// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/error.h"
#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

/// -weight log sigmoid(o(w) - o(l)), o(a) = log(p / (1 - p)) of p = e^a.
/// Slope in w: -weight sigmoid(-z) / (1 - e^w), z = o(w) - o(l).
struct OddsRatioLink {
  double weight = 0.1;

  template <class T>
  T value(const T& w, const T& l) const {
    return -weight * math::log_sigmoid(T(math::log_odds(w) - math::log_odds(l)));
  }

  template <class T>
  BasicSlopes<T> slopes(const T& w, const T& l) const {
    const T outer = weight * math::sigmoid(T(math::log_odds(l) - math::log_odds(w)));
    return {-outer * math::log_odds_slope(w), outer * math::log_odds_slope(l)};
  }
};

struct OrpoOptions {
  double lambda = 0.1;
  Reduction reduction = Reduction::kTokenMean;
  bool nll_over_prompt = false;
  ScoreOptions score{.length_normalized = true, .reference_free = true};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"lambda", "weight of the odds ratio term", {"beta"}}, lambda, kBetaRange);
    reduction_field(v, reduction);
    v.flag({"nll_over_prompt", "imitate the prompt's tokens as well (TRL)"}, nll_over_prompt);
    score.fields(v);
    pair.fields(v);
  }
};

/// Odds ratio preference optimization (ORPO, 2403.07691 eqs. 6 and 7), without a reference:
///   NLL(y_w) - lambda log sigmoid(o(a_w) - o(a_l)), a = lp/n, o(a) = a - log(1 - e^a)
/// [batch] log-probs in nats, lengths in tokens. Derivative in a_w of the second term: -lambda
/// sigmoid(-z)/(1 - e^a_w). At a_w = a_l: NLL + lambda log 2. With `nll_over_prompt` the NLL is
/// that of prompt and completion, as in TRL and the authors' code; the paper's is the completion's.
/// Close to a = 0 (see math/functions.h), o continues as its tangent.
class OrpoLoss : public PairwiseLoss<OrpoLoss, OrpoOptions> {
 public:
  explicit OrpoLoss(OrpoOptions options = {}) : PairwiseLoss(std::move(options)) {
    if (!options_.score.reference_free || !options_.score.length_normalized) {
      throw ConfigError(
          "orpo: expected reference_free and length_normalized to be true, got false; odds are "
          "those of the mean token's probability");
    }
    detail::refuse_label_probs(options_.pair.use_label_probs, "orpo");
  }

  OddsRatioLink link() const { return {options_.lambda}; }
  NllRegularizer regularizer() const {
    return {.weight = 1, .reduction = options_.reduction, .with_prompt = options_.nll_over_prompt};
  }
  double beta() const { return options_.lambda; }

  static LossProperties properties() { return {.non_negative = true, .monotone = true}; }
  static LossInfo info() {
    return {.name = "orpo",
            .aliases = {},
            .formula = "NLL(y_w) - lambda*logsigmoid(o_w - o_l), o = a - log(1-e^a), a = lp/n",
            .source = "arXiv:2403.07691 eqs. 6, 7",
            .anchors = {{0, 0, 2.0693147180559945}, {5, 5, 1.0693147180559945}},
            .when_to_use = "From a base model in one stage, without SFT and without a reference.",
            .elsewhere = {{"TRL", "ORPOTrainer", "nll_over_prompt"},
                          {"LLaMA-Factory", "orpo", "NLL as reduction sequence_mean"}}};
  }
};

}  // namespace prefopt
