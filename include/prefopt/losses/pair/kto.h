// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "prefopt/losses/loss_base.h"
#include "prefopt/losses/score.h"

namespace prefopt {

struct KtoOptions {
  double beta = 0.1;
  double desirable_weight = 1;
  double undesirable_weight = 1;
  bool estimate_kl = true;
  bool use_weights = false;
  HumanlineOptions humanline = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"desirable_weight", "weight of rows with label true"}, desirable_weight,
           Range::at_least(0));
    v.real({"undesirable_weight", "weight of rows with label false"}, undesirable_weight,
           Range::at_least(0));
    v.flag({"estimate_kl", "measure rewards from the policy's KL; else from 0 (apo_zero_unpaired)"},
           estimate_kl);
    v.flag({"use_weights", "multiply each row's loss by the given weights"}, use_weights);
    humanline.fields(v);
  }
};

/// Kahneman-Tversky optimization (2402.01306 eq. 7), on rows of one completion and a label:
///   desirable:   lambda_D (1 - sigmoid(beta (Delta - z0)))
///   undesirable: lambda_U (1 - sigmoid(beta (z0 - Delta)))
///   z0 = max(0, mean over the step of log pi/pi_ref of another row's completion), no gradient
/// [batch] log-probs in nats; the batch is the whole optimizer step. Derivative in Delta: -+ lambda
/// beta s(1 - s), s the sigmoid. At Delta = z0 = 0: lambda/2. Rows need no partner, so they may be
/// shuffled freely. With `humanline` (2509.24207) Delta and the log-ratios in z0 are sums of token
/// log-ratios within [log_epsilon_p, log_epsilon_r]; the preset `apo_zero_unpaired` has z0 = 0.
class KtoLoss : public LossBase<KtoLoss, KtoOptions> {
 public:
  /// Throws ConfigError for limits without humanline.
  explicit KtoLoss(KtoOptions options = {}) : LossBase(std::move(options)) {
    (void)options_.humanline.limits("kto");
  }

  template <class T>
  BasicLossOutput<T> formula(const BasicPairLogps<T>& in) const {
    const T sign = 2 * in.labels - 1;
    T weights =
        options_.desirable_weight * in.labels + options_.undesirable_weight * (1 - in.labels);
    if (options_.use_weights) weights = weights * in.weights;
    const bool limited = options_.humanline.humanline;
    const T logratio =
        limited ? in.chosen_limited_logratios : T(in.chosen_logps - in.ref_chosen_logps);
    BasicLossOutput<T> out;
    T z = options_.beta * logratio;
    if (options_.estimate_kl) {
      const T others = limited ? in.kl_limited_logratios : T(in.kl_logps - in.ref_kl_logps);
      const auto rows = static_cast<double>(math::length(others));
      const ScalarOf<T> mean = math::sum(others) / rows;
      out.kl = math::relu(mean);
      z = options_.beta * (logratio - out.kl);
    }
    z = sign * z;
    out.losses = weights * math::sigmoid(T(-z));
    (limited ? out.grad_chosen_limited : out.grad_chosen) =
        -options_.beta * (sign * weights * math::sigmoid(z) * math::sigmoid(T(-z)));
    finish(out, step_pairs(in));
    out.chosen_rewards = options_.beta * logratio;
    return out;
  }
  LossRequirements requirements() const {
    const auto limits = options_.humanline.limits("kto");
    const InputSet of_others = InputSet{Input::kl_logps, Input::ref_kl_logps} |
                               when(limits.has_value(), Input::kl_limited_logratios);
    return {.inputs = InputSet{Input::chosen_logps, Input::ref_chosen_logps, Input::labels} |
                      when(limits.has_value(), Input::chosen_limited_logratios) |
                      when(options_.estimate_kl, of_others) |
                      when(options_.use_weights, Input::weights),
            .limits = limits,
            .whole_step = options_.estimate_kl};
  }

  static LossProperties properties() { return {.log_ratios_only = true, .non_negative = true}; }
  static LossInfo info() {
    return {.name = "kto",
            .aliases = {},
            .formula =
                "lambda_D (1 - sigmoid(beta*(Delta - z0))) or lambda_U (1 - "
                "sigmoid(beta*(z0 - Delta)))",
            .source = "arXiv:2402.01306 eq. 7",
            .anchors = {{0, 0, 0.5}, {10, 0, 0.2689414213699951}},
            .when_to_use = "Thumbs up or down in place of pairs.",
            .elsewhere = {{"TRL", "KTOTrainer", "z0 over each micro-batch"},
                          {"LLaMA-Factory", "kto", "z0 over each micro-batch"}},
            .presets = {{"apo_zero_unpaired", R"({"estimate_kl": false})"}}};
  }
};

}  // namespace prefopt
