// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/rejection.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>

#include "prefopt/error.h"

namespace prefopt {
namespace {

using Places = std::vector<std::int64_t>;

double reward_at(const std::vector<double>& rewards, std::int64_t place) {
  return rewards[static_cast<std::size_t>(place)];
}

void check_rejection(const std::vector<double>& rewards, double beta, std::int64_t count) {
  if (!std::isfinite(beta) || beta < 0) {
    throw ConfigError(fmt::format("rejection: expected beta >= 0, got {}", beta));
  }
  if (count < 1) throw ConfigError(fmt::format("rejection: expected n >= 1, got {}", count));
  for (const double reward : rewards) {
    if (std::isfinite(reward)) continue;
    throw ConfigError(fmt::format("rejection: expected finite rewards, got {}", reward));
  }
}

/// Accepts from one pass over `left` until `accepted` has `count`, and removes those from `left`.
void accept_in_pass(const std::vector<double>& rewards, double beta, std::size_t count,
                    const std::function<double()>& uniform, Places& left, Places& accepted) {
  double top = reward_at(rewards, left.front());
  for (const std::int64_t place : left) top = std::max(top, reward_at(rewards, place));
  Places rejected;
  for (const std::int64_t place : left) {
    const bool is_full = accepted.size() == count;
    const bool passes = !is_full && uniform() < std::exp((reward_at(rewards, place) - top) / beta);
    (passes ? accepted : rejected).push_back(place);
  }
  left = std::move(rejected);
}

}  // namespace

std::vector<std::int64_t> accept_by_rejection(const std::vector<double>& rewards, double beta,
                                              std::int64_t count,
                                              const std::function<double()>& uniform) {
  check_rejection(rewards, beta, count);
  const std::size_t most = std::min(rewards.size(), static_cast<std::size_t>(count));
  Places left(rewards.size());
  std::iota(left.begin(), left.end(), std::int64_t{0});
  if (beta == 0) {
    std::stable_sort(left.begin(), left.end(), [&](std::int64_t a, std::int64_t b) {
      return reward_at(rewards, a) > reward_at(rewards, b);
    });
    left.resize(most);
    return left;
  }
  Places accepted;
  while (accepted.size() < most) {
    accept_in_pass(rewards, beta, most, uniform, left, accepted);
  }
  return accepted;
}

}  // namespace prefopt
