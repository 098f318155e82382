// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "prefopt/objectives/advantage.h"

namespace prefopt::detail {

/// Returns `of_rewards` of the rewards of each group, one a token. Completions without a reward
/// have 0.
template <class Function>
Eigen::ArrayXd per_group(const RolloutStep& step, Function&& of_rewards) {
  Eigen::ArrayXd result = Eigen::ArrayXd::Zero(step.completions());
  for (const auto& group : step.rated_groups()) {
    Eigen::ArrayXd rewards(static_cast<Eigen::Index>(group.size()));
    for (Eigen::Index i = 0; i < rewards.size(); ++i) {
      rewards[i] = step.rewards[group[static_cast<std::size_t>(i)]];
    }
    const Eigen::ArrayXd values = of_rewards(rewards);
    for (Eigen::Index i = 0; i < rewards.size(); ++i) {
      result[group[static_cast<std::size_t>(i)]] = values[i];
    }
  }
  return step.spread(result);
}

/// Returns the standard deviation with `ddof` degrees of freedom taken, exactly 0 of equal values
/// and of no more than `ddof` of them.
inline double standard_deviation(const Eigen::ArrayXd& x, std::int64_t ddof) {
  const auto count = x.size() - ddof;
  if (count <= 0 || x.minCoeff() == x.maxCoeff()) return 0;
  return std::sqrt((x - x.mean()).square().sum() / static_cast<double>(count));
}

/// Returns x less its mean, exactly 0 of equal values.
inline Eigen::ArrayXd centred(const Eigen::ArrayXd& x) {
  if (x.minCoeff() == x.maxCoeff()) return x * 0;
  return x - x.mean();
}

}  // namespace prefopt::detail
