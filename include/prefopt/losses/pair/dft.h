// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/loss_base.h"
#include "prefopt/losses/pair/sft.h"
#include "prefopt/losses/regularizer.h"

namespace prefopt {

struct DftOptions {
  Reduction reduction = Reduction::kTokenMean;
  bool use_weights = false;

  void fields(FieldVisitor& v) { detail::imitation_fields(v, reduction, use_weights); }
};

/// Dynamic fine-tuning (DFT, 2508.05629): sft with each token weighted by the policy's own
/// probability of it, without gradient,
///   -sum over tokens of stop(pi_t) log pi_t / number of tokens of the step
/// [batch] sums over the chosen completion's tokens. Derivative in log pi_t: -pi_t times the
/// reduction's share, so that a token that is nearly impossible under the policy pulls no harder
/// than others: sft's factor 1/pi_t cancels. No reference, no rejected completion, no rewards. At
/// five tokens of probability e^-2 each: 2 e^-2.
class DftLoss : public LossBase<DftLoss, DftOptions> {
 public:
  using LossBase::LossBase;

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const double pairs = step_pairs(in);
    BasicLossOutput<T> out;
    nll().add_to(out, in, pairs);
    if (options_.use_weights) detail::weigh_rows(out, out.grad_confident, in.weights);
    finish(out, pairs);
    return out;
  }
  LossRequirements requirements() const {
    return detail::imitation_needs(nll(), options_.use_weights);
  }

  static LossProperties properties() { return {.non_negative = true, .monotone = true}; }
  static LossInfo info() {
    return {.name = "dft",
            .aliases = {},
            .formula = "-sum(stop(pi_t) * log(pi_t)) / number of chosen tokens",
            .source = "arXiv:2508.05629",
            .anchors = {{0, 0, 0.2706705664732254}, {5, 0, 0.36787944117144233}},
            .when_to_use = "In place of sft, if the policy should not follow unlikely tokens.",
            .elsewhere = {{"TRL", "SFTTrainer dft"}}};
  }

 private:
  NllRegularizer nll() const {
    return {.weight = 1, .reduction = options_.reduction, .baseline = NllTarget::kConfident};
  }
};

}  // namespace prefopt
