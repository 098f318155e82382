// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct SftOptions {
  Reduction reduction = Reduction::kTokenMean;

  void fields(FieldVisitor& v) {
    v.choice({"reduction", "NLL over tokens of the step, per sequence mean, or per sequence sum"},
             reduction, {"token_mean", "sequence_mean", "sum"});
  }
};

/// Supervised fine-tuning on the chosen completions: their negative log-likelihood, by default the
/// mean over all completion tokens of the step (TRL's `sft`). No reference, no rejected completion,
/// no rewards. Derivative in chosen_logps: minus the reduction's share of the sequence.
class SftLoss : public LossBase<SftLoss, SftOptions> {
 public:
  using LossBase::LossBase;

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const double pairs = step_pairs(in);
    BasicLossSum<T> sum;
    NllRegularizer{.weight = 1, .reduction = options_.reduction}.add_to(sum, in, pairs);
    return finish(sum, pairs);
  }
  LossRequirements requirements() const { return {.reference = false, .rejected = false}; }
  bool needs_lens() const { return options_.reduction != Reduction::kSum; }

  static LossInfo info() {
    return {.name = "sft",
            .aliases = {"nll"},
            .formula = "-sum(chosen token logps) / number of chosen tokens",
            .source = "TRL 1.16 loss_type sft",
            .anchors = {{0, 0, 2}, {5, 0, 1}}};
  }
};

}  // namespace prefopt
