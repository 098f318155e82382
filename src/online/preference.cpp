// SPDX-License-Identifier: Apache-2.0
#include "prefopt/online/preference.h"

#include <fmt/format.h>

#include <cmath>
#include <map>

#include "prefopt/error.h"
#include "prefopt/math/functions.h"

namespace prefopt {

std::vector<double> Preference::rewards(const std::vector<const Rollout*>& /*rollouts*/) {
  throw ConfigError(
      "feedback: expected rewards of single completions, got comparisons alone; use a source of "
      "rewards, or a selection that compares");
}

double compare_rewards(double first, double second, double temperature) {
  const double gap = first - second;
  if (std::isnan(gap)) return gap;
  if (temperature > 0) return math::sigmoid(gap / temperature);
  return gap == 0 ? 0.5 : gap > 0 ? 1 : 0;
}

RewardPreference::RewardPreference(double temperature) : temperature_(temperature) {
  if (temperature >= 0 && std::isfinite(temperature)) return;
  throw ConfigError(
      fmt::format("feedback: expected a temperature of at least 0, got {}", temperature));
}

std::vector<double> RewardPreference::beats(const std::vector<Comparison>& comparisons) {
  std::map<const Rollout*, std::size_t> places;
  std::vector<const Rollout*> asked;
  const auto place = [&](const Rollout* rollout) {
    const auto [at, is_new] = places.try_emplace(rollout, asked.size());
    if (is_new) asked.push_back(rollout);
    return at->second;
  };
  for (const Comparison& comparison : comparisons) {
    place(comparison.first);
    place(comparison.second);
  }
  const std::vector<double> rewards = this->rewards(asked);
  std::vector<double> answers;
  for (const Comparison& comparison : comparisons) {
    answers.push_back(compare_rewards(rewards.at(place(comparison.first)),
                                      rewards.at(place(comparison.second)), temperature_));
  }
  return answers;
}

}  // namespace prefopt
