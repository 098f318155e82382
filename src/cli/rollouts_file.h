// SPDX-License-Identifier: Apache-2.0
#pragma once

// The rows of `prefopt loss --rollouts`: completions of one optimizer step, given as numbers.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace prefopt::cli {

/// One completion. Lists of another length than `logps` are refused.
struct RolloutRow {
  std::int64_t line = 0;
  std::optional<std::int64_t> group = {};
  /// Numbers of its tokens by key: "logps", "old_logps", …, those that the row has.
  std::map<std::string, std::vector<double>, std::less<>> tokens = {};
  std::optional<double> reward = {}, greedy_reward = {};  ///< NaN: null in the file
  bool finished = true;
  std::vector<std::int64_t> turn_ends = {}, step_ends = {};

  std::int64_t length() const { return std::ssize(tokens.find("logps")->second); }
  /// Returns the numbers of a key; empty where the row has none.
  const std::vector<double>& numbers(std::string_view key) const;
};

/// Returns at least one row. Throws DataError, led by `PATH:LINE`, for what is no rollout.
std::vector<RolloutRow> read_rollouts(const std::string& path);

/// Returns the keys that some row has and `read` does not name, in the order of the alphabet.
std::set<std::string> unread_keys(const std::vector<RolloutRow>& rows,
                                  const std::set<std::string_view>& read);

}  // namespace prefopt::cli
