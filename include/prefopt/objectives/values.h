// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <cstdint>

#include "prefopt/export.h"
#include "prefopt/math/functions.h"
#include "prefopt/objectives/rollout_step.h"
#include "prefopt/options.h"

namespace prefopt {

/// Returns the rewards of tokens: `token_rewards` where there are any, and the completion's reward
/// at its last acted token.
PREFOPT_API Eigen::ArrayXd rewards_of_tokens(const RolloutStep& step);

/// Returns A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V_{t+1} − V_t, over the acted tokens of each
/// completion, V = 0 after the last; 0 at the others (1506.02438; 2307.04964 eq. 9). `values`
/// [tokens].
PREFOPT_API Eigen::ArrayXd generalized_advantages(const RolloutStep& step,
                                                  const Eigen::ArrayXd& values, double gamma,
                                                  double lambda);

/// Returns (x − mean) / √(var + 1e-8) with the mean and unbiased variance of acted tokens, 0 at the
/// others and where fewer than two tokens acted.
PREFOPT_API Eigen::ArrayXd whitened(const Eigen::ArrayXd& x, const Eigen::ArrayXd& acted);

/// Mean and spread of all rewards since training began, by which rewards are scaled (2307.04964 eq.
/// 18): clip((r − mean) / std, ±clip), std with one degree of freedom taken.
class PREFOPT_API RewardNormalizer {
 public:
  struct State {
    double count = 0, mean = 0, squares = 0;
  };

  /// `centres`: whether the mean is taken off. `clip` 0: no limit; below 0 a ConfigError.
  explicit RewardNormalizer(bool centres = true, double clip = 0);

  /// Adds rewards to the statistics, then returns them scaled by these. NaN stays and is not
  /// counted. Rewards that have all been equal are 0 where the mean is taken off, else unchanged.
  /// Throws DataError for an infinite reward, which would spoil the statistics for good.
  Eigen::ArrayXd operator()(const Eigen::ArrayXd& rewards);
  double mean() const { return state_.mean; }
  double standard_deviation() const;
  const State& state() const { return state_; }
  void set_state(const State& state) { state_ = state; }

 private:
  bool centres_;
  double clip_;
  State state_;
};

/// Returns β (1 + clip(KL / target − 1, ±0.2) · n / horizon), the coefficient of a KL penalty that
/// keeps the KL at `target` nats a completion (1909.08593 section 2.2); n: completions of the step,
/// of which at most `horizon` count.
/// Throws ConfigError unless target and horizon are above 0.
PREFOPT_API double adapted_kl_coefficient(double beta, double kl, double target, double n,
                                          double horizon);

struct ValueLossOptions {
  double coefficient = 0;
  double clip = 0.2;

  void fields(FieldVisitor& v) {
    v.real({"coefficient", "weight of the values' loss; 0: none is trained"}, coefficient,
           Range::at_least(0));
    v.real({"clip", "how far a value may move from that of the rollout; 0: anywhere"}, clip,
           Range::at_least(0));
  }
};

/// Squared error of values and its derivative: f = ½ max((v − R)², (clip(v, v_old ± clip) − R)²)
/// (2307.04964 eq. 16), with derivative 0 where the limited branch is the larger one.
template <class T>
struct ValueErrors {
  T losses, gradients;
};

template <class T>
ValueErrors<T> value_errors(const T& values, const T& old_values, const T& returns, double clip) {
  const T gap = values - returns;
  if (clip == 0) return {.losses = 0.5 * math::square(gap), .gradients = gap};
  const T moved = values - old_values;
  const T limited = old_values + math::clamp(moved, clip) - returns;
  const T excess = math::square(limited) - math::square(gap);
  const T is_limited = math::is_positive(excess);
  return {.losses = 0.5 * (math::square(gap) + math::relu(excess)),
          .gradients = gap * (1 - is_limited)};
}

}  // namespace prefopt
