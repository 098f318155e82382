// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

/// Sign of the value incentive.
enum class VpoMode {
  kOffline,  ///< -1: pessimism
  kOnline,   ///< +1: optimism
};

struct VpoOptions {
  double beta = 0.1;
  double alpha = 0.1;
  VpoMode mode = VpoMode::kOffline;
  Calibration calibration = Calibration::kChosen;
  std::int64_t num_samples = 1;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"alpha", "weight of the value incentive"}, alpha, Range::at_least(0));
    v.choice({"mode", "offline: pessimism (sign -1); online: optimism (sign +1)"}, mode,
             {"offline", "online"});
    v.choice({"calibration",
              "completions the value is calibrated on; samples: fresh ones of the reference; "
              "reference_side: those that it drew, by the rows' from_reference"},
             calibration, {"chosen", "rejected", "samples", "reference_side"});
    v.integer({"num_samples", "fresh samples per prompt, for calibration = samples"}, num_samples,
              Range::at_least(1));
    score.fields(v);
    pair.fields(v);
  }
};

/// Value-incentivized preference optimization (2405.19320):
///   dpo + sign * alpha * beta * mean over calibration completions of (log pi - log pi_ref)
/// [batch] log-probs in nats. Derivative: dpo's plus sign alpha beta on the calibration side.
/// At Delta_w = Delta_l = 0: log 2. With mode online and calibration reference_side this is XPO
/// (2405.21046) with the weight alpha beta, less the mean of log pi_ref, which has no gradient.
class VpoLoss : public PairwiseLoss<VpoLoss, VpoOptions> {
 public:
  /// Throws ConfigError for unused options.
  explicit VpoLoss(VpoOptions options = {}) : PairwiseLoss(std::move(options)) {
    const VpoOptions usual;
    detail::refuse_idle(
        options_.num_samples != usual.num_samples && options_.calibration != Calibration::kSamples,
        "vpo", "num_samples", "calibration is not 'samples'");
    const bool is_plain = options_.alpha == 0;
    detail::refuse_idle(is_plain && options_.mode != usual.mode, "vpo", "mode",
                        "the value incentive has weight 0");
    detail::refuse_idle(is_plain && options_.calibration != usual.calibration, "vpo", "calibration",
                        "the value incentive has weight 0");
    const bool is_of_label = options_.calibration == Calibration::kChosen ||
                             options_.calibration == Calibration::kRejected;
    detail::refuse_label_probs(options_.pair.use_label_probs && !is_plain && is_of_label, "vpo");
  }

  LogisticLink link() const { return {.beta = options_.beta}; }
  ValueIncentive regularizer() const {
    const double sign = options_.mode == VpoMode::kOnline ? 1 : -1;
    return {.weight = sign * options_.alpha * options_.beta, .calibration = options_.calibration};
  }
  LossRequirements requirements() const {
    LossRequirements needs = PairwiseLoss::requirements();
    if (options_.calibration == Calibration::kSamples) {
      needs.sample_source = SampleSource::kReference;
      needs.samples_per_prompt = options_.num_samples;
    }
    return needs;
  }

  static LossProperties properties() { return {.log_ratios_only = true}; }
  static LossInfo info() {
    return {
        .name = "vpo",
        .aliases = {},
        .formula = "dpo + sign * alpha * beta * mean(log pi - log pi_ref)",
        .source = "arXiv:2405.19320",
        .anchors = {{0, 0, 0.69314718055994531}, {10, 10, 0.59314718055994531}},
        .when_to_use = "Online rounds that should explore, or offline data with little coverage."};
  }
};

}  // namespace prefopt
