// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/losses/loss_base.h"

namespace prefopt {

/// The number that is subtracted from a log-ratio in the gradient of the KL penalty.
enum class KlBaseline {
  kNone,
  kGroup,  ///< the mean log-ratio of the other rows of the same prompt
};

struct PolicyGradientOptions {
  double tau = 0.008;
  KlBaseline kl_baseline = KlBaseline::kNone;
  bool use_weights = false;

  void fields(FieldVisitor& v) {
    v.real({"tau", "strength of the KL penalty; 0: none, and no reference"}, tau,
           Range::at_least(0));
    v.choice({"kl_baseline",
              "what the gradient of the KL measures log-ratios from: group: the mean of the "
              "prompt's other rows"},
             kl_baseline, {"none", "group"});
    v.flag({"use_weights", "multiply each row's loss by the given weights"}, use_weights);
  }
};

/// Policy gradient on given advantages with a KL penalty, a sequence at a time (Nash-MD-PG,
/// 2312.00886 appendix eq. 13; SPO, 2401.04056, with advantages of win rates):
///   value       tau lr - A, lr = log pi - log pi_ref
///   derivative  tau (lr - b) - A
/// on rows of one completion y ~ pi and its `advantage`. The derivative in log pi is not that of
/// the value but the score-function estimate: its mean over samples is the gradient of tau KL(pi ||
/// pi_ref) - E A with A held fixed, also where completions have many tokens. b = 0, or with
/// `kl_baseline` group the mean lr of the prompt's other rows in the step: less variance, the same
/// mean. (TRL's Nash-MD weighs each token's gradient with the token's own lr, which is biased.)
/// Rows have to be samples of the policy at temperature 1, and a step one update: there is no
/// importance ratio. [batch] log-probs in nats; lr counts tokens with their weights. At lr = 0: -A.
/// This is the member of a family with given advantages, no rule of clipping, sums over sequences,
/// and the KL in the advantage.
class PolicyGradientLoss : public LossBase<PolicyGradientLoss, PolicyGradientOptions> {
 public:
  /// Throws ConfigError for a baseline of no KL.
  explicit PolicyGradientLoss(PolicyGradientOptions options = {}) : LossBase(std::move(options)) {
    detail::refuse_idle(options_.kl_baseline != KlBaseline::kNone && options_.tau == 0,
                        "policy_gradient", "kl_baseline", "the KL penalty has weight 0");
  }

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const double pairs = step_pairs(in);
    const double tau = options_.tau;
    const T weights = options_.use_weights ? in.weights : math::constant(in.advantages, 1);
    const T gain = -weights * in.advantages;
    BasicLossOutput<T> out;
    out.losses = out.grad_chosen = gain;
    if (tau != 0) {
      const T logratios = in.chosen_logps - in.ref_chosen_logps;
      const T penalty = tau * weights * logratios;
      out.losses = gain + penalty;
      out.grad_chosen = gain + tau * weights * centred(logratios, in);
      out.kl = math::sum(logratios) / pairs;
      out.terms = {{"advantage", ScalarOf<T>(math::sum(gain) / pairs)},
                   {"kl", ScalarOf<T>(math::sum(penalty) / pairs)}};
      out.chosen_rewards = tau * logratios;
    }
    finish(out, pairs);
    return out;
  }
  LossRequirements requirements() const {
    const bool has_groups = options_.kl_baseline == KlBaseline::kGroup;
    return {.inputs = InputSet{Input::chosen_logps, Input::advantages} |
                      when(options_.tau != 0, Input::ref_chosen_logps) |
                      when(has_groups, Input::groups) | when(options_.use_weights, Input::weights),
            .whole_step = has_groups,
            .of_own_samples = true};
  }
  GradientExceptions gradient_exceptions() const { return {.estimated = Input::chosen_logps}; }

  static LossProperties properties() { return {.log_ratios_only = true}; }
  static LossInfo info() {
    return {
        .name = "policy_gradient",
        .aliases = {},
        .formula = "tau*(lp - lp_ref) - A",
        .source = "arXiv:2312.00886 appendix eq. 13",
        .anchors = {{0, 0, 0}, {10, 0, 0.08}},
        .when_to_use =
            "Online rounds in which completions have rewards or win rates, and every one counts.",
        .elsewhere = {{"TRL up to 0.29", "NashMDTrainer", "a KL token by token, biased"}}};
  }

 private:
  /// Log-ratios less their baselines.
  template <class T>
  T centred(const T& logratios, const BasicPairLogps<T>& in) const {
    if (options_.kl_baseline == KlBaseline::kNone) return logratios;
    const T rows = math::sum_of_equal(math::constant(logratios, 1), in.groups);
    const T others = math::sum_of_equal(logratios, in.groups) - logratios;
    return logratios - others / (math::relu(T(rows - 2)) + 1);  // max(1, rows - 1)
  }
};

}  // namespace prefopt
