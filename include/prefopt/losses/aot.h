// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

struct AotOptions {
  double beta = 0.1;
  double label_smoothing = 0;

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, Range::above(0));
    v.real({"label_smoothing", "assumed share of wrong labels"}, label_smoothing,
           Range::half_open(0, 0.5));
  }
};

namespace detail {
/// The logistic loss of sorted differences: quantile against quantile. Losses go back to the rows
/// that the first list came from.
template <class T>
struct QuantileLoss {
  T losses;
  T d_first, d_second;

  QuantileLoss(const AotOptions& options, const T& first, const T& second)
      : QuantileLoss(options, first, second, math::sort_order(first), math::sort_order(second)) {}

 private:
  QuantileLoss(const AotOptions& options, const T& first, const T& second, const T& first_order,
               const T& second_order) {
    const double eps = options.label_smoothing;
    const LogisticLink link{options.beta, 1 - eps, eps};
    const T delta = math::take(first, first_order) - math::take(second, second_order);
    const T slope = link.derivative(delta);
    losses = math::put_back(link.value(delta), first_order);
    d_first = math::put_back(slope, first_order);
    d_second = math::put_back(T(-slope), second_order);
  }
};

/// Rewards of a loss whose scores are the plain log-ratios.
template <class T>
void set_rewards(BasicLossOutput<T>& out, const BasicPairLogps<T>& in, double beta) {
  out.chosen_rewards = beta * (in.chosen_logps - in.ref_chosen_logps);
  out.rejected_rewards = beta * (in.rejected_logps - in.ref_rejected_logps);
  out.margins = out.chosen_rewards - out.rejected_rewards;
}
}  // namespace detail

/// Alignment by optimal transport, paired (2406.05882): the margins of the policy shall dominate
/// those of the reference, quantile by quantile of the whole step,
///   delta'_k = sort(lp_w - lp_l)_k - sort(ref_w - ref_l)_k
///   -(1 - eps) log sigmoid(beta delta'_k) - eps log sigmoid(-beta delta'_k)
/// [batch] log-probs in nats; the batch is the whole optimizer step. Derivative: the logistic one,
/// at the row that holds the k-th margin. At policy = reference: log 2.
class AotLoss : public LossBase<AotLoss, AotOptions> {
 public:
  using LossBase::LossBase;

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const detail::QuantileLoss<T> loss(options_, T(in.chosen_logps - in.rejected_logps),
                                       T(in.ref_chosen_logps - in.ref_rejected_logps));
    BasicLossOutput<T> out;
    out.losses = loss.losses;
    out.grad_chosen = loss.d_first;
    out.grad_rejected = -loss.d_first;
    finish(out, step_pairs(in));
    detail::set_rewards(out, in, options_.beta);
    return out;
  }
  LossRequirements requirements() const { return {.whole_step = true}; }

  static LossInfo info() {
    return {.name = "aot",
            .aliases = {"aot_pair"},
            .formula = "dpo's loss of sort(lp_w - lp_l) - sort(ref_w - ref_l)",
            .source = "arXiv:2406.05882",
            .anchors = {{0, 0, 0.69314718055994531}, {10, 0, 0.31326168751822284}},
            .when_to_use = "Large steps, and the distribution of margins matters more than each.",
            .elsewhere = {{"TRL", "aot", "sorts each micro-batch by itself"}}};
  }
};

/// The unpaired form: chosen and rejected log-ratios are sorted apart,
///   delta'_k = sort(Delta_w)_k - sort(Delta_l)_k
/// so that which rejected completion belongs to which chosen one does not matter.
class AotUnpairedLoss : public LossBase<AotUnpairedLoss, AotOptions> {
 public:
  using LossBase::LossBase;

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const detail::QuantileLoss<T> loss(options_, T(in.chosen_logps - in.ref_chosen_logps),
                                       T(in.rejected_logps - in.ref_rejected_logps));
    BasicLossOutput<T> out;
    out.losses = loss.losses;
    out.grad_chosen = loss.d_first;
    out.grad_rejected = loss.d_second;
    finish(out, step_pairs(in));
    detail::set_rewards(out, in, options_.beta);
    return out;
  }
  LossRequirements requirements() const { return {.whole_step = true}; }

  static LossInfo info() {
    return {.name = "aot_unpaired",
            .aliases = {},
            .formula = "dpo's loss of sort(Delta_w) - sort(Delta_l)",
            .source = "arXiv:2406.05882",
            .anchors = {{0, 0, 0.69314718055994531}, {10, 0, 0.31326168751822284}},
            .when_to_use = "Good and bad completions that do not belong together in pairs.",
            .elsewhere = {{"TRL", "aot_unpaired", "sorts each micro-batch by itself"}}};
  }
};

}  // namespace prefopt
