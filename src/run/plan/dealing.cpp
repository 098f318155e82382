// SPDX-License-Identifier: Apache-2.0
#include "run/plan/dealing.h"

#include <numeric>

#include "train/shares.h"

namespace prefopt::detail {
namespace {

std::vector<int> deal_equal_counts(std::size_t parts, int ranks) {
  const std::size_t each =
      (parts + static_cast<std::size_t>(ranks) - 1) / static_cast<std::size_t>(ranks);
  std::vector<int> dealt(parts);
  for (std::size_t i = 0; i < parts; ++i) dealt[i] = static_cast<int>(i / each);
  return dealt;
}

/// A run ends where half of the next part would lie beyond its end.
std::vector<int> deal_equal_runs(const std::vector<std::int64_t>& costs, int ranks) {
  const auto total =
      static_cast<double>(std::accumulate(costs.begin(), costs.end(), std::int64_t{0}));
  std::vector<int> dealt;
  int rank = 0;
  double before = 0;
  for (const std::int64_t cost : costs) {
    const double end = total * (rank + 1) / ranks;
    if (before + static_cast<double>(cost) / 2 > end && rank + 1 < ranks) ++rank;
    dealt.push_back(rank);
    before += static_cast<double>(cost);
  }
  return dealt;
}

}  // namespace

std::string_view to_string(DealingRule rule) {
  constexpr std::array<std::string_view, 3> kNames = {"equal counts", "equal runs",
                                                      "longest first"};
  return kNames[static_cast<std::size_t>(rule)];
}

std::vector<int> deal(DealingRule rule, const std::vector<std::int64_t>& costs, int ranks) {
  switch (rule) {
    case DealingRule::kEqualCounts:
      return deal_equal_counts(costs.size(), ranks);
    case DealingRule::kEqualRuns:
      return deal_equal_runs(costs, ranks);
    case DealingRule::kLongestFirst:
      break;
  }
  return deal_longest_first(costs, ranks);
}

}  // namespace prefopt::detail
