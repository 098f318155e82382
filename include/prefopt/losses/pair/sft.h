// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/losses/loss_base.h"
#include "prefopt/losses/regularizer.h"

namespace prefopt {

struct SftOptions {
  Reduction reduction = Reduction::kTokenMean;
  bool use_weights = false;
  bool use_labels = false;

  void fields(FieldVisitor& v) {
    reduction_field(v, reduction);
    v.flag({"use_weights", "multiply each row's loss by the given weights"}, use_weights);
    v.flag({"use_labels",
            "rows are labelled, and the desirable ones are imitated; set in a mix with "
            "such losses"},
           use_labels);
  }
};

/// Supervised fine-tuning on the chosen completions: their negative log-likelihood, by default the
/// mean over all completion tokens of the step (TRL's `sft`). No reference, no rejected completion,
/// no rewards. A mean divides by all tokens, whatever their weight, also those of labelled rows
/// (`use_labels`: the weight is the label). Derivative in chosen_logps: minus the reduction's share
/// of the sequence, times its weight.
class SftLoss : public LossBase<SftLoss, SftOptions> {
 public:
  using LossBase::LossBase;

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const double pairs = step_pairs(in);
    BasicLossOutput<T> out;
    NllRegularizer{.weight = 1, .reduction = options_.reduction}.add_to(out, in, pairs);
    for (const auto& [used, weights] :
         {std::pair{options_.use_weights, &in.weights}, {options_.use_labels, &in.labels}}) {
      if (!used) continue;
      out.losses = out.losses * *weights;
      out.grad_chosen = out.grad_chosen * *weights;
    }
    finish(out, pairs);
    return out;
  }
  LossRequirements requirements() const {
    return {.inputs = Input::chosen_logps |
                      when(options_.reduction != Reduction::kSum, Input::chosen_lens) |
                      when(options_.use_labels, Input::labels) |
                      when(options_.use_weights, Input::weights)};
  }

  static LossProperties properties() { return {.non_negative = true, .monotone = true}; }
  static LossInfo info() {
    return {.name = "sft",
            .aliases = {"nll"},
            .formula = "-sum(chosen token logps) / number of chosen tokens",
            .source = "TRL 1.16 loss_type sft",
            .anchors = {{0, 0, 2}, {5, 0, 1}},
            .when_to_use = "Before preference training, or as a part of a mix.",
            .elsewhere = {{"TRL", "sft", "mean over the micro-batch"}}};
  }
};

}  // namespace prefopt
