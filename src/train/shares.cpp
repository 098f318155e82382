// SPDX-License-Identifier: Apache-2.0
#include "train/shares.h"

#include <algorithm>
#include <numeric>

namespace prefopt::detail {

std::vector<int> deal_longest_first(const std::vector<std::int64_t>& costs, int ranks) {
  std::vector<std::size_t> order(costs.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return costs[a] > costs[b]; });
  std::vector<std::int64_t> loads(static_cast<std::size_t>(ranks));
  std::vector<int> dealt(costs.size());
  for (const std::size_t part : order) {
    const auto least = std::min_element(loads.begin(), loads.end());
    *least += costs[part];
    dealt[part] = static_cast<int>(least - loads.begin());
  }
  return dealt;
}

std::vector<int> deal_tree(std::size_t parts, int ranks) {
  auto leaves = static_cast<std::size_t>(ranks);
  while (leaves < parts) leaves *= 2;
  const std::size_t each = leaves / static_cast<std::size_t>(ranks);
  std::vector<int> dealt(parts);
  for (std::size_t i = 0; i < parts; ++i) dealt[i] = static_cast<int>(i / each);
  return dealt;
}

double imbalance_of(const std::vector<std::int64_t>& costs, const std::vector<int>& dealt,
                    int ranks) {
  std::vector<std::int64_t> loads(static_cast<std::size_t>(ranks));
  for (std::size_t i = 0; i < costs.size(); ++i) {
    loads[static_cast<std::size_t>(dealt[i])] += costs[i];
  }
  const auto total = std::accumulate(loads.begin(), loads.end(), std::int64_t{0});
  const auto most = *std::max_element(loads.begin(), loads.end());
  return total == 0 ? 1 : static_cast<double>(most * ranks) / static_cast<double>(total);
}

}  // namespace prefopt::detail
