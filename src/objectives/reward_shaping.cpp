// SPDX-License-Identifier: Apache-2.0
#include "prefopt/objectives/reward_shaping.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

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

namespace {

Eigen::ArrayXd weights_by_rank(Eigen::Index count, RankFilter filter) {
  Eigen::ArrayXd weights = Eigen::ArrayXd::Constant(count, 1.0 / static_cast<double>(count));
  if (count == 1 || filter == RankFilter::kNone) return weights;
  weights.setZero();
  weights[0] = filter == RankFilter::kBest ? 1 : 0.5;
  if (filter == RankFilter::kBestWorst) weights[count - 1] = 0.5;
  if (filter == RankFilter::kBestRandom) {
    weights.tail(count - 1) = 0.5 / static_cast<double>(count - 1);
  }
  return weights;
}

}  // namespace

Eigen::ArrayXd rank_weights(const Eigen::ArrayXd& rewards, RankFilter filter) {
  std::vector<Eigen::Index> order;
  for (Eigen::Index i = 0; i < rewards.size(); ++i) {
    if (!std::isnan(rewards[i])) order.push_back(i);
  }
  if (order.empty()) {
    return Eigen::ArrayXd::Constant(rewards.size(), 1.0 / static_cast<double>(rewards.size()));
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](Eigen::Index a, Eigen::Index b) { return rewards[a] > rewards[b]; });
  const Eigen::Index count = std::ssize(order);
  const Eigen::ArrayXd by_rank = weights_by_rank(count, filter);
  const auto at = [&](Eigen::Index rank) { return order[static_cast<std::size_t>(rank)]; };
  Eigen::ArrayXd weights = Eigen::ArrayXd::Zero(rewards.size());
  for (Eigen::Index begin = 0; begin < count;) {
    Eigen::Index end = begin;
    while (end < count && rewards[at(end)] == rewards[at(begin)]) ++end;
    const double mean = by_rank.segment(begin, end - begin).mean();
    for (; begin < end; ++begin) weights[at(begin)] = mean;
  }
  return weights;
}

Eigen::ArrayXd prompt_priorities(const Eigen::ArrayXd& success_rates) {
  for (Eigen::Index i = 0; i < success_rates.size(); ++i) {
    if (success_rates[i] >= 0 && success_rates[i] <= 1) continue;
    throw DataError(
        fmt::format("prompt_priorities: expected rates of success from 0 to 1, got {} of prompt {}",
                    success_rates[i], i));
  }
  const Eigen::ArrayXd failures = 1 - success_rates;
  const double sum = failures.sum();
  if (sum > 0) return failures / sum;
  return Eigen::ArrayXd::Constant(success_rates.size(),
                                  1 / static_cast<double>(success_rates.size()));
}

}  // namespace prefopt
