// SPDX-License-Identifier: Apache-2.0
#include "prefopt/objectives/rollout_step.h"

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <numeric>
#include <string_view>

#include "prefopt/error.h"

namespace prefopt {

std::vector<std::int64_t> RolloutStep::starts() const {
  std::vector<std::int64_t> places{0};
  for (const std::int64_t length : lens) places.push_back(places.back() + length);
  return places;
}

Eigen::ArrayXd RolloutStep::acted_tokens() const {
  const auto places = starts();
  Eigen::ArrayXd counts(completions());
  for (std::int64_t i = 0; i < completions(); ++i) {
    const auto of = static_cast<std::size_t>(i);
    counts[i] = acted.segment(places[of], lens[of]).sum();
  }
  return counts;
}

Eigen::ArrayXd RolloutStep::rated_tokens() const {
  return spread(rewards).isNaN().select(0, acted);
}

std::vector<std::vector<std::int64_t>> RolloutStep::rated_groups() const {
  std::map<std::int64_t, std::size_t> places;
  std::vector<std::vector<std::int64_t>> members;
  for (std::int64_t i = 0; i < completions(); ++i) {
    if (std::isnan(rewards[i])) continue;
    const auto [place, is_new] =
        places.emplace(groups[static_cast<std::size_t>(i)], members.size());
    if (is_new) members.emplace_back();
    members[place->second].push_back(i);
  }
  return members;
}

Eigen::ArrayXd RolloutStep::spread(const Eigen::ArrayXd& of_completions) const {
  const auto places = starts();
  Eigen::ArrayXd each(tokens());
  for (std::int64_t i = 0; i < completions(); ++i) {
    const auto of = static_cast<std::size_t>(i);
    each.segment(places[of], lens[of]).setConstant(of_completions[i]);
  }
  return each;
}

void check_rollout_step(const RolloutStep& step) {
  const auto check_size = [](std::int64_t size, std::int64_t expected, std::string_view name) {
    if (size == expected) return;
    throw ShapeError(fmt::format("rollouts: expected {} [{}], got [{}]", name, expected, size));
  };
  const std::int64_t completions = step.completions();
  for (std::int64_t i = 0; i < completions; ++i) {
    const std::int64_t length = step.lens[static_cast<std::size_t>(i)];
    if (length >= 0) continue;
    throw ShapeError(
        fmt::format("rollouts: expected lens of at least 0, got {} of completion {}", length, i));
  }
  const std::int64_t tokens = std::accumulate(step.lens.begin(), step.lens.end(), std::int64_t{0});
  check_size(std::ssize(step.groups), completions, "groups");
  check_size(step.acted.size(), tokens, "acted");
  check_size(step.rewards.size(), completions, "rewards");
  const auto check_optional = [&](const Eigen::ArrayXd& x, std::int64_t size,
                                  std::string_view name) {
    if (x.size() > 0) check_size(x.size(), size, name);
  };
  check_optional(step.greedy_rewards, completions, "greedy_rewards");
  const auto check_rewards = [&](const Eigen::ArrayXd& x, std::string_view name) {
    for (Eigen::Index i = 0; i < x.size(); ++i) {
      if (!std::isinf(x[i])) continue;
      throw DataError(
          fmt::format("rollouts: expected a finite {}, got {} of completion {}", name, x[i], i));
    }
  };
  check_rewards(step.rewards, "reward");
  check_rewards(step.greedy_rewards, "greedy reward");
  const auto places = step.starts();
  for (std::int64_t i = 0; i < completions; ++i) {
    for (std::int64_t t = 0; t < step.lens[static_cast<std::size_t>(i)]; ++t) {
      const double acted = step.acted[places[static_cast<std::size_t>(i)] + t];
      if (acted == 0 || acted == 1) continue;
      throw DataError(fmt::format(
          "rollouts: expected acted of 0 or 1, got {} at token {} of completion {}", acted, t, i));
    }
  }
  const auto check_tokens = [&](const Eigen::ArrayXd& x, std::string_view name) {
    check_optional(x, tokens, name);
    for (std::int64_t i = 0; x.size() > 0 && i < completions; ++i) {
      const auto of = static_cast<std::size_t>(i);
      for (std::int64_t t = 0; t < step.lens[of]; ++t) {
        const double value = x[places[of] + t];
        if (std::isfinite(value) || step.acted[places[of] + t] == 0) continue;
        throw DataError(
            fmt::format("rollouts: expected finite {}, got {} at token {} of completion {}", name,
                        value, t, i));
      }
    }
  };
  check_tokens(step.given, "advantages");
  check_tokens(step.token_rewards, "token_rewards");
  check_tokens(step.values, "values");
  check_tokens(step.old_logps, "old_logps");
  check_tokens(step.ref_logps, "ref_logps");
  check_tokens(step.extra_logps, "extra_logps");
}

}  // namespace prefopt
