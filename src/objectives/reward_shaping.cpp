// SPDX-License-Identifier: Apache-2.0
#include "prefopt/objectives/reward_shaping.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "prefopt/error.h"

namespace prefopt {

Eigen::ArrayXd length_rewards(const Eigen::ArrayXd& lens, const std::vector<bool>& correct) {
  if (lens.size() != std::ssize(correct)) {
    throw ShapeError(fmt::format("length_rewards: expected correct [{}], got [{}]", lens.size(),
                                 correct.size()));
  }
  Eigen::ArrayXd rewards = Eigen::ArrayXd::Zero(lens.size());
  if (lens.size() == 0 || lens.minCoeff() == lens.maxCoeff()) return rewards;
  const double range = lens.maxCoeff() - lens.minCoeff();
  for (Eigen::Index i = 0; i < lens.size(); ++i) {
    const double lambda = 0.5 - (lens[i] - lens.minCoeff()) / range;
    rewards[i] = correct[static_cast<std::size_t>(i)] ? lambda : std::min(0.0, lambda);
  }
  return rewards;
}

Eigen::ArrayXd overlong_penalties(const Eigen::ArrayXd& lens, double max, double buffer,
                                  double factor) {
  if (!(buffer > 0 && buffer <= max)) {
    throw ConfigError(
        fmt::format("overlong: expected a buffer above 0 and up to max {}, got {}", max, buffer));
  }
  return lens.unaryExpr([&](double length) {
    return -factor * std::clamp((length - (max - buffer)) / buffer, 0.0, 1.0);
  });
}

Eigen::ArrayXd rank_weights(const Eigen::ArrayXd& rewards, RankFilter filter) {
  const Eigen::Index count = rewards.size();
  Eigen::ArrayXd by_rank = Eigen::ArrayXd::Constant(count, 1.0 / static_cast<double>(count));
  if (count > 1 && filter != RankFilter::kNone) {
    by_rank.setZero();
    by_rank[0] = filter == RankFilter::kBest ? 1 : 0.5;
    if (filter == RankFilter::kBestWorst) by_rank[count - 1] = 0.5;
    if (filter == RankFilter::kBestRandom) {
      by_rank.tail(count - 1) = 0.5 / static_cast<double>(count - 1);
    }
  }
  std::vector<Eigen::Index> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](Eigen::Index a, Eigen::Index b) { return rewards[a] > rewards[b]; });
  Eigen::ArrayXd weights(count);
  for (Eigen::Index begin = 0; begin < count;) {
    Eigen::Index end = begin;
    const auto at = [&](Eigen::Index rank) { return order[static_cast<std::size_t>(rank)]; };
    while (end < count && rewards[at(end)] == rewards[at(begin)]) ++end;
    const double mean = by_rank.segment(begin, end - begin).mean();
    for (; begin < end; ++begin) weights[at(begin)] = mean;
  }
  return weights;
}

Eigen::ArrayXd prompt_priorities(const Eigen::ArrayXd& success_rates) {
  const Eigen::ArrayXd failures = (1 - success_rates).max(0);
  const double sum = failures.sum();
  if (sum > 0) return failures / sum;
  return Eigen::ArrayXd::Constant(success_rates.size(),
                                  1 / static_cast<double>(success_rates.size()));
}

}  // namespace prefopt
