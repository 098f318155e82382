// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

/// weight * mean of (r_w + r_l)^2, which keeps rewards around 0 (2312.09244 eq. 2, as TRL has it).
/// Derivative in either reward: 2 weight (r_w + r_l). No term at weight 0.
struct CenterRewards {
  static constexpr const char* kName = "centering";
  double weight = 0;

  void add_needs(LossRequirements&) const {}
  template <class T>
  void add_to(BasicLossOutput<T>& out, const BasicPairLogps<T>& in, double /*pairs*/) const {
    if (weight == 0) return;
    const T sum = in.chosen_logps + in.rejected_logps;
    const T slope = 2 * weight * sum;
    detail::add_to(out.losses, T(weight * math::square(sum)));
    detail::add_to(out.grad_chosen, slope);
    detail::add_to(out.grad_rejected, slope);
  }
};

struct RewardBtOptions {
  double center_rewards_coefficient = 0;
  /// Scores are rewards as they are. Not options: neither is listed by `fields`.
  ScoreOptions score{.reference_free = true};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"center_rewards_coefficient",
            "weight of the squared sum of both rewards, which keeps them around 0; 0.01 is usual"},
           center_rewards_coefficient, Range::at_least(0));
    v.real({"margin_scale",
            "times the given reward gap is subtracted from the difference of the rewards"},
           pair.margin_scale, Range::at_least(0));
    v.flag({"use_label_probs", "weigh both orders of a pair by the given label_probs"},
           pair.use_label_probs);
    v.flag({"use_weights", "multiply each pair's loss by the given weights"}, pair.use_weights);
  }
};

/// Bradley-Terry loss of a reward model (2307.09288 eq. 1, the margin m of eq. 2):
///   -log sigmoid(r_w - r_l - margin_scale m) + center_rewards_coefficient (r_w + r_l)^2
/// Its inputs are [batch] rewards of a reward model (policy/reward_policy.h) where other losses
/// have log-probs; no reference. Derivative in r_w: -sigmoid(-z) + 2 c (r_w + r_l), with z the
/// argument of the sigmoid; in r_l: sigmoid(-z) + 2 c (r_w + r_l). At r_w = r_l = 0: log 2. The
/// form -log(e^{r_w} / (e^{r_w} + e^{r_l})) of 2204.05862 is the same number. With
/// `use_label_probs`, the cross-entropy of the given probability that the chosen completion is
/// better. Weights multiply the first term alone.
class RewardBtLoss : public PairwiseLoss<RewardBtLoss, RewardBtOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  LogisticLink link() const { return {.beta = 1}; }
  CenterRewards regularizer() const { return {.weight = options_.center_rewards_coefficient}; }
  double beta() const { return 1; }

  LossRequirements requirements() const {
    LossRequirements needs = PairwiseLoss::requirements();
    needs.of_rewards = true;
    return needs;
  }

  static LossProperties properties() {
    return {.difference_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "reward_bt",
            .aliases = {"log_exp"},
            .formula = "-logsigmoid(r_w - r_l - margin_scale*m) + c*(r_w + r_l)^2, r a reward",
            .source = "arXiv:2307.09288 eqs. 1 and 2, arXiv:2312.09244 eq. 2",
            .anchors = {{0, 0, 0.69314718055994531}, {1, 0, 0.31326168751822284}},
            .when_to_use =
                "To train a reward model on pairs, for best-of-n, judges and online "
                "training.",
            .elsewhere = {{"TRL", "RewardTrainer", "takes a column margin whenever there is one"},
                          {"OpenRLHF", "PairWiseLoss, LogExpLoss",
                           "LogExpLoss is the same without a margin, and overflows in float32 "
                           "where r_l - r_w is above 88"}}};
  }
};

}  // namespace prefopt
