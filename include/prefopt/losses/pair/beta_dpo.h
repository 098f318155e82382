// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/pairwise_loss.h"
#include "prefopt/losses/running_mean.h"

namespace prefopt {

/// The logistic link with the beta of the step, and the average that it passes on.
template <class T>
struct StepBetaLink {
  ScalarOf<T> beta = {};
  RunningMean<T> running = {};

  T value(const T& delta) const { return -math::log_sigmoid(T(beta * delta)); }
  T derivative(const T& delta) const { return -beta * math::sigmoid(T(-beta * delta)); }
};

struct BetaDpoOptions {
  double beta = 0.1;
  double alpha = 0.6;
  double momentum = 0.9;
  ScoreOptions score = {};
  PairOptions pair = {};

  void fields(FieldVisitor& v) {
    v.real({"beta", "strength of the KL penalty of a step of average gap"}, beta, kBetaRange);
    v.real({"alpha", "strength with which beta follows the gap of the step"}, alpha,
           Range::at_least(0));
    v.real({"momentum", "of the moving average of the gap"}, momentum, Range::half_open(0, 1));
    score.fields(v);
    pair.fields(v);
  }
};

/// beta-DPO with a beta for each step (2407.08639):
///   -log sigmoid(beta_step delta), beta_step = max(1e-3, beta (1 + alpha (mean delta - M)))
///   M <- momentum M + (1 - momentum) mean delta, starting at 0, before it is used
/// all without gradient, with means over the whole optimizer step. [batch] log-probs in nats.
/// Derivative in delta: -beta_step sigmoid(-beta_step delta). At delta = 0: log 2. The authors'
/// filter of pairs is left to the data.
class BetaDpoLoss : public PairwiseLoss<BetaDpoLoss, BetaDpoOptions> {
 public:
  using PairwiseLoss::PairwiseLoss;

  static constexpr double kLeastBeta = 1e-3;

  template <class T>
  StepBetaLink<T> link(const BasicPairLogps<T>& in) const {
    const Score scores = score();
    const T delta = scores.of(chosen_side(in)).score - scores.of(rejected_side(in)).score;
    const ScalarOf<T> gap = math::sum(delta) / static_cast<double>(math::length(delta));
    const RunningMean<T> running = blended(in.running, gap, options_.momentum);
    const ScalarOf<T> beta = options_.beta * (1 + options_.alpha * (gap - running.mean));
    return {ScalarOf<T>(kLeastBeta + math::relu(ScalarOf<T>(beta - kLeastBeta))), running};
  }
  LossRequirements requirements() const {
    LossRequirements needs = PairwiseLoss::requirements();
    needs.whole_step = needs.running_mean = true;
    return needs;
  }
  GradientExceptions gradient_exceptions() const {
    return PairwiseLoss::gradient_exceptions() | GradientExceptions{.stops_part = true};
  }

  static LossProperties properties() {
    return {
        .log_ratios_only = true, .difference_only = true, .non_negative = true, .monotone = true};
  }
  static LossInfo info() {
    return {.name = "beta_dpo",
            .aliases = {},
            .formula = "-logsigmoid(beta_step*delta), beta_step = beta*(1 + alpha*(mean - M))",
            .source = "arXiv:2407.08639",
            .anchors = {{0, 0, 0.69314718055994531}, {2, 0, 0.5066249756751873}},
            .when_to_use = "Pairs of mixed quality, some barely different, some far apart.",
            .elsewhere = {{"beta-DPO authors' code", "", "also filters pairs"}}};
  }
};

}  // namespace prefopt
