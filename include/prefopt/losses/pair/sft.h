// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/loss_base.h"
#include "prefopt/losses/regularizer.h"

namespace prefopt {

namespace detail {

/// Lists the options of losses that imitate one completion.
inline void imitation_fields(FieldVisitor& v, Reduction& reduction, bool& use_weights) {
  reduction_field(v, reduction);
  v.flag({"use_weights", "multiply each row's loss by the given weights"}, use_weights);
}

/// Multiplies each row's loss, and its slope `gradient`, by its weight.
template <class T>
void weigh_rows(BasicLossOutput<T>& out, T& gradient, const T& weights) {
  out.losses = out.losses * weights;
  gradient = gradient * weights;
}

inline LossRequirements imitation_needs(const NllRegularizer& nll, bool use_weights) {
  LossRequirements needs{.inputs = Input::chosen_logps | when(use_weights, Input::weights)};
  nll.add_needs(needs);
  return needs;
}

}  // namespace detail

struct SftOptions {
  Reduction reduction = Reduction::kTokenMean;
  bool use_weights = false;
  bool use_labels = false;

  void fields(FieldVisitor& v) {
    detail::imitation_fields(v, reduction, use_weights);
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
    nll().add_to(out, in, pairs);
    if (options_.use_weights) detail::weigh_rows(out, out.grad_chosen, in.weights);
    if (options_.use_labels) detail::weigh_rows(out, out.grad_chosen, in.labels);
    finish(out, pairs);
    return out;
  }
  LossRequirements requirements() const {
    LossRequirements needs = detail::imitation_needs(nll(), options_.use_weights);
    needs.inputs |= when(options_.use_labels, Input::labels);
    return needs;
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

 private:
  NllRegularizer nll() const { return {.weight = 1, .reduction = options_.reduction}; }
};

}  // namespace prefopt
