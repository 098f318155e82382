// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>

#include "prefopt/error.h"
#include "prefopt/losses/pairwise_loss.h"

namespace prefopt {

enum class RewardDistance { kSquared, kForwardKl, kBackwardKl };

/// Distance of z = beta delta from a given reward gap g.
template <class T>
struct RewardGapLink {
  double beta = 0.1;
  RewardDistance distance = RewardDistance::kSquared;
  T gap;

  RewardGapLink swapped() const { return {beta, distance, -gap}; }

  T value(const T& delta) const {
    const T z = beta * delta;
    switch (distance) {
      case RewardDistance::kForwardKl:
        return BernoulliKlLink<T>{beta, math::log_sigmoid(gap), math::log_sigmoid(T(-gap))}.value(
            delta);
      case RewardDistance::kBackwardKl:
        return BernoulliKlLink<T>{1, math::log_sigmoid(z), math::log_sigmoid(T(-z))}.value(gap);
      default:
        return math::square(T(z - gap));
    }
  }

  T derivative(const T& delta) const {
    const T z = beta * delta;
    switch (distance) {
      case RewardDistance::kForwardKl:
        return beta * (math::sigmoid(z) * math::sigmoid(T(-z)) * (z - gap));
      case RewardDistance::kBackwardKl:
        return beta * (math::sigmoid(z) - math::sigmoid(gap));
      default:
        return 2 * beta * (z - gap);
    }
  }
};

struct RewardAwareOptions {
  double beta = 0.1;
  double eta = 1;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty"}, beta, kBetaRange);
    v.real({"eta", "scale of the given reward gap", {"gt_reward_scale"}}, eta, Range::above(0));
    score.fields(v);
    pair.fields(v);
  }
};

/// Reward-aware preference optimization (2406.11704 section 3.3.2; NeMo-Aligner), on pairs with the
/// column `margins`, the reward gap g = eta (r_w - r_l). With z = beta delta:
///   rpo_sq:     (z - g)^2
///   rpo_fwd_kl: KL(Bernoulli(sigmoid(z)) || Bernoulli(sigmoid(g)))
///   rpo_bwd_kl: KL(Bernoulli(sigmoid(g)) || Bernoulli(sigmoid(z)))
/// [batch] log-probs in nats. Derivatives in delta: 2 beta (z - g); beta s(1 - s)(z - g), s =
/// sigmoid(z); beta (sigmoid(z) - sigmoid(g)). At z = g: 0. `margin_scale` is refused: the loss has
/// the margins already. Not the RPO of 2405.16436, which is the loss `rpo`.
template <class Derived, RewardDistance kDistance>
class RewardAwareLoss : public PairwiseLoss<Derived, RewardAwareOptions> {
  using Base = PairwiseLoss<Derived, RewardAwareOptions>;

 public:
  /// Throws ConfigError for a margin_scale.
  explicit RewardAwareLoss(RewardAwareOptions options = {}) : Base(std::move(options)) {
    if (this->options_.pair.margin_scale != 0) {
      throw ConfigError(Derived::info().name +
                        ": expected margin_scale 0, got another; the loss reads the margins as the "
                        "reward gap, which eta scales");
    }
  }

  template <class T>
  RewardGapLink<T> link(const BasicPairLogps<T>& in) const {
    return {this->options_.beta, kDistance, this->options_.eta * in.margins};
  }
  LossRequirements requirements() const {
    LossRequirements needs = Base::requirements();
    needs.inputs |= Input::margins;
    return needs;
  }
};

class RpoSquaredLoss : public RewardAwareLoss<RpoSquaredLoss, RewardDistance::kSquared> {
 public:
  using RewardAwareLoss::RewardAwareLoss;

  static LossProperties properties() {
    return {.log_ratios_only = true, .difference_only = true, .non_negative = true};
  }
  static LossInfo info() {
    return {.name = "rpo_sq",
            .aliases = {},
            .formula = "(beta*delta - eta*gap)^2",
            .source = "arXiv:2406.11704",
            .anchors = {{0, 0, 0}, {10, 0, 1}},
            .when_to_use = "A reward model's scores are available and can be trusted as given.",
            .elsewhere = {{"NeMo-Aligner", "rpo_sq"}}};
  }
};

class RpoForwardKlLoss : public RewardAwareLoss<RpoForwardKlLoss, RewardDistance::kForwardKl> {
 public:
  using RewardAwareLoss::RewardAwareLoss;

  static LossProperties properties() {
    return {.log_ratios_only = true, .difference_only = true, .non_negative = true};
  }
  static LossInfo info() {
    return {.name = "rpo_fwd_kl",
            .aliases = {},
            .formula = "KL(Bernoulli(sigmoid(beta*delta)) || Bernoulli(sigmoid(eta*gap)))",
            .source = "arXiv:2406.11704",
            .anchors = {{0, 0, 0}, {10, 10, 0}},
            .when_to_use = "As rpo_bwd_kl; pairs that are far off pull less.",
            .elsewhere = {{"NeMo-Aligner", "rpo_fwd_kl"}}};
  }
};

class RpoBackwardKlLoss : public RewardAwareLoss<RpoBackwardKlLoss, RewardDistance::kBackwardKl> {
 public:
  using RewardAwareLoss::RewardAwareLoss;

  static LossProperties properties() {
    return {.log_ratios_only = true, .difference_only = true, .non_negative = true};
  }
  static LossInfo info() {
    return {.name = "rpo_bwd_kl",
            .aliases = {},
            .formula = "KL(Bernoulli(sigmoid(eta*gap)) || Bernoulli(sigmoid(beta*delta)))",
            .source = "arXiv:2406.11704",
            .anchors = {{0, 0, 0}, {10, 10, 0}},
            .when_to_use = "A reward model tells how much better the chosen completion is.",
            .elsewhere = {{"NeMo-Aligner", "rpo_bwd_kl"}}};
  }
};

}  // namespace prefopt
