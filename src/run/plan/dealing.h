// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace prefopt::detail {

/// Ways to deal the micro-batches of a step to ranks.
enum class DealingRule {
  kEqualCounts,   ///< the same number each, in order
  kEqualRuns,     ///< runs of about equal cost, in order
  kLongestFirst,  ///< deal_longest_first, as training does
};

inline constexpr std::array kDealingRules = {DealingRule::kEqualCounts, DealingRule::kEqualRuns,
                                             DealingRule::kLongestFirst};

std::string_view to_string(DealingRule rule);

/// Returns the rank of each part.
std::vector<int> deal(DealingRule rule, const std::vector<std::int64_t>& costs, int ranks);

}  // namespace prefopt::detail
