// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct HypoOptions {
  double beta = 0.1;
  double lambda = 0.01;
  std::int64_t num_samples = 2;
  double clip = 0;
  bool token_mean = false;
  double label_smoothing = 0;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the offline KL penalty"}, beta, kBetaRange);
    v.real({"lambda", "weight of the on-policy KL"}, lambda, Range::at_least(0));
    v.integer({"num_samples", "fresh samples per prompt"}, num_samples, Range::at_least(1));
    v.real({"clip", "limit on |log pi/pi_ref| in the KL's gradient; 0: none"}, clip,
           Range::at_least(0));
    v.flag({"token_mean", "divide each sample's log-ratio by its length"}, token_mean);
    v.real({"label_smoothing", "assumed share of wrong labels (conservative DPO)"}, label_smoothing,
           kLabelSmoothingRange);
    score.fields(v);
    pair.fields(v);
  }
};

/// Hybrid preference optimization (2406.01462): dpo on offline pairs plus
///   lambda * KL(pi || pi_ref), estimated on fresh samples y ~ pi.
/// Value: mean log pi/pi_ref over the samples. Gradient: mean of
///   stop(log pi/pi_ref - baseline) d log pi,
/// baseline = mean of the prompt's other samples (none for a single one): unbiased for y ~ pi
/// itself, so the trainer refuses sampling except at temperature 1. `clip` and `token_mean` trade
/// that for less variance. [batch] log-probs in nats, samples [batch * num_samples]. At Delta = 0
/// everywhere: log 2.
class HypoLoss : public PairwiseLoss<HypoLoss, HypoOptions> {
 public:
  /// Throws ConfigError for options of a KL that has weight 0.
  explicit HypoLoss(HypoOptions options = {}) : PairwiseLoss(std::move(options)) {
    const HypoOptions usual;
    const auto check = [&](bool is_set, const char* option) {
      detail::refuse_idle(is_set && options_.lambda == 0, "hypo", option,
                          "the KL on fresh samples has weight 0");
    };
    check(options_.clip != usual.clip, "clip");
    check(options_.token_mean, "token_mean");
    check(options_.num_samples != usual.num_samples, "num_samples");
  }

  LogisticLink link() const {
    return {options_.beta, 1 - options_.label_smoothing, options_.label_smoothing};
  }
  OnPolicyKl regularizer() const {
    return {.weight = options_.lambda, .clip = options_.clip, .token_mean = options_.token_mean};
  }
  LossRequirements requirements() const {
    LossRequirements needs = PairwiseLoss::requirements();
    if (options_.lambda == 0) return needs;  // dpo
    needs.sample_source = SampleSource::kPolicy;
    needs.samples_per_prompt = options_.num_samples;
    return needs;
  }
  GradientExceptions gradient_exceptions() const {
    return PairwiseLoss::gradient_exceptions() |
           GradientExceptions{.estimated = Input::sample_logps};
  }

  static LossProperties properties() { return {.log_ratios_only = true, .difference_only = true}; }
  static LossInfo info() {
    return {.name = "hypo",
            .aliases = {},
            .formula = "dpo + lambda * KL(pi || pi_ref) on fresh samples",
            .source = "arXiv:2406.01462",
            .anchors = {{0, 0, 0.69314718055994531}, {10, 0, 0.31326168751822284}},
            .when_to_use =
                "Offline pairs with little coverage, if sampling from the policy is affordable."};
  }
};

}  // namespace prefopt
