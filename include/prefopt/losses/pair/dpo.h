// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct DpoOptions {
  double beta = 0.1;
  double label_smoothing = 0;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"label_smoothing", "assumed share of wrong labels (conservative DPO)"}, label_smoothing,
           kLabelSmoothingRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// Direct preference optimization (2305.18290 eq. 7; label_smoothing: conservative DPO,
/// ericmitchell.ai/cdpo.pdf):
///   -(1 - eps) log sigmoid(beta delta) - eps log sigmoid(-beta delta)
/// [batch] log-probs in nats. Derivative in delta: beta (sigmoid(beta delta) - (1 - eps)).
/// ODPO (2402.10571) subtracts log of the given reward gap from beta delta (`margin_of`): preset
/// `odpo`. SPIN (2401.01335) is this loss on completions of an earlier policy as the rejected ones,
/// and Step-DPO (2406.18629) on single reasoning steps as completions. RSO's "sigmoid-norm"
/// (2309.06657 eq. 8, "norm" for the reference) is this loss with beta = gamma, not sigmoid_norm.
/// DNO (2404.03715 eq. 12) is this loss with beta = eta, `use_label_probs`, and the last iterate as
/// the reference. GenARM (2410.08193 eq. 5) trains an autoregressive reward model, which guides the
/// decoding of another one (policy/guided_policy.h), by the log-probs of that model alone: preset
/// `genarm`, without a reference. At delta = 0: log 2. As beta delta grows: eps beta delta; as it
/// falls: -(1 - eps) beta delta.
class DpoLoss : public PairwiseLoss<DpoLoss, DpoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  LogisticLink link() const {
    return {options_.beta, 1 - options_.label_smoothing, options_.label_smoothing};
  }

  static LossProperties properties() {
    return {
        .log_ratios_only = true, .difference_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "dpo",
            .aliases = {"sigmoid", "spin", "step_dpo"},
            .formula = "-(1-eps) logsigmoid(beta*delta) - eps logsigmoid(-beta*delta)",
            .source = "arXiv:2305.18290 eq. 7",
            .anchors = {{0, 0, 0.69314718055994531}, {10, 0, 0.31326168751822284}},
            .when_to_use = "The first choice for clean pairs; everything else is compared with it.",
            .elsewhere = {{"TRL", "sigmoid", "ignores label_smoothing; up to 0.26 smoothed by it"},
                          {"OpenRLHF", "dpo"},
                          {"LLaMA-Factory", "sigmoid"},
                          {"Liger", "sigmoid", "without label_smoothing"},
                          {"PaddleNLP", "offset_alpha", "the preset odpo"}},
            .presets = {{"odpo", R"({"margin_scale": 1, "margin_of": "log_gap"})"},
                        {"genarm", R"({"beta": 0.05, "reference_free": true})"}}};
  }
};

}  // namespace prefopt
