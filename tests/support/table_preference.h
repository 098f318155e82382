// SPDX-License-Identifier: Apache-2.0
#pragma once

// Feedback that is given as numbers, on completions of one prompt.

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "prefopt/online/preference.h"

namespace prefopt::testing_support {

/// Completions of one token each, which is their place, all of them ended.
inline std::vector<Rollout> make_rollouts(std::size_t count) {
  std::vector<Rollout> rollouts(count);
  for (std::size_t i = 0; i < count; ++i) {
    rollouts[i].completion = {static_cast<std::int64_t>(i)};
    rollouts[i].ended = true;
  }
  return rollouts;
}

/// P(i beats j) of completions as make_rollouts makes them.
class TablePreference final : public Preference {
 public:
  explicit TablePreference(std::vector<std::vector<double>> table) : table_(std::move(table)) {}

  std::vector<double> beats(const std::vector<Comparison>& comparisons) override {
    std::vector<double> answers;
    for (const Comparison& comparison : comparisons) {
      answers.push_back(table_.at(token(*comparison.first)).at(token(*comparison.second)));
    }
    return answers;
  }

 private:
  static std::size_t token(const Rollout& rollout) {
    return static_cast<std::size_t>(rollout.completion.front());
  }

  std::vector<std::vector<double>> table_;
};

/// Rewards of completions as make_rollouts makes them.
class TableRewards final : public RewardPreference {
 public:
  explicit TableRewards(std::vector<double> table, double temperature = 1)
      : RewardPreference(temperature), table_(std::move(table)) {}

  std::vector<double> rewards(const std::vector<const Rollout*>& rollouts) override {
    std::vector<double> answers;
    for (const Rollout* rollout : rollouts) {
      answers.push_back(table_.at(static_cast<std::size_t>(rollout->completion.front())));
    }
    return answers;
  }

 private:
  std::vector<double> table_;
};

/// P = 1 or 0 by rewards, 1/2 for equal ones, as a table of comparisons.
inline TablePreference make_comparisons(const std::vector<double>& rewards) {
  std::vector<std::vector<double>> table;
  for (const double first : rewards) {
    auto& row = table.emplace_back();
    for (const double second : rewards) row.push_back(compare_rewards(first, second, 0));
  }
  return TablePreference(std::move(table));
}

}  // namespace prefopt::testing_support
