// SPDX-License-Identifier: Apache-2.0
#include "prefopt/objectives/values.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "prefopt/error.h"

namespace prefopt {

Eigen::ArrayXd rewards_of_tokens(const RolloutStep& step) {
  Eigen::ArrayXd rewards =
      step.token_rewards.size() > 0 ? step.token_rewards : Eigen::ArrayXd::Zero(step.tokens());
  const auto places = step.starts();
  for (std::int64_t i = 0; i < step.completions(); ++i) {
    const auto of = static_cast<std::size_t>(i);
    for (std::int64_t t = places[of + 1] - 1; t >= places[of]; --t) {
      if (step.acted[t] == 0) continue;
      rewards[t] += step.rewards[i];
      break;
    }
  }
  return rewards;
}

Eigen::ArrayXd generalized_advantages(const RolloutStep& step, const Eigen::ArrayXd& values,
                                      double gamma, double lambda) {
  const Eigen::ArrayXd rewards = rewards_of_tokens(step);
  const auto places = step.starts();
  Eigen::ArrayXd advantages = Eigen::ArrayXd::Zero(step.tokens());
  for (std::size_t i = 0; i + 1 < places.size(); ++i) {
    double next_value = 0;
    double sum = 0;
    for (std::int64_t t = places[i + 1] - 1; t >= places[i]; --t) {
      if (step.acted[t] == 0) continue;
      sum = rewards[t] + gamma * next_value - values[t] + gamma * lambda * sum;
      next_value = values[t];
      advantages[t] = sum;
    }
  }
  return advantages;
}

Eigen::ArrayXd whitened(const Eigen::ArrayXd& x, const Eigen::ArrayXd& acted) {
  constexpr double kEpsilon = 1e-8;
  const double count = acted.sum();
  if (count < 2) return x * 0;
  const Eigen::ArrayXd counted = (acted > 0).select(x, 0);
  const double mean = counted.sum() / count;
  const Eigen::ArrayXd gaps = (acted > 0).select(x - mean, 0);
  const double variance = gaps.square().sum() / (count - 1);
  return gaps / std::sqrt(variance + kEpsilon);
}

RewardNormalizer::RewardNormalizer(bool centres, double clip) : centres_(centres), clip_(clip) {
  if (!(clip >= 0)) {
    throw ConfigError(fmt::format("reward normalization: expected clip >= 0, got {}", clip));
  }
}

Eigen::ArrayXd RewardNormalizer::operator()(const Eigen::ArrayXd& rewards) {
  for (Eigen::Index i = 0; i < rewards.size(); ++i) {
    if (!std::isinf(rewards[i])) continue;
    throw DataError(fmt::format(
        "reward normalization: expected finite rewards, got {} of completion {}", rewards[i], i));
  }
  for (const double reward : rewards) {
    if (std::isnan(reward)) continue;
    state_.count += 1;
    const double gap = reward - state_.mean;
    state_.mean += gap / state_.count;
    state_.squares += gap * (reward - state_.mean);
  }
  const double spread = standard_deviation();
  const Eigen::ArrayXd moved = centres_ ? Eigen::ArrayXd(rewards - state_.mean) : rewards;
  const Eigen::ArrayXd scaled = spread > 0 ? Eigen::ArrayXd(moved / spread) : moved;
  if (clip_ == 0) return scaled;
  return scaled.unaryExpr(
      [&](double x) { return std::isnan(x) ? x : std::clamp(x, -clip_, clip_); });
}

double RewardNormalizer::standard_deviation() const {
  return state_.count > 1 ? std::sqrt(state_.squares / (state_.count - 1)) : 0;
}

double adapted_kl_coefficient(double beta, double kl, double target, double n, double horizon) {
  if (!(target > 0 && horizon > 0)) {
    throw ConfigError(
        fmt::format("kl: expected a target and a horizon above 0, got {} and {}", target, horizon));
  }
  constexpr double kMostError = 0.2;
  const double error = std::clamp(kl / target - 1, -kMostError, kMostError);
  return beta * (1 + error * std::min(n / horizon, 1.0));
}

}  // namespace prefopt
