// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// Who takes which micro-batch of a step. Every rank computes it, alike.
namespace prefopt::detail {

/// Returns the rank of each part: the costliest first, each to the rank that has least so far. The
/// most loaded rank has at most 4/3 of what is best possible (Graham 1969).
std::vector<int> deal_longest_first(const std::vector<std::int64_t>& costs, int ranks);

/// Returns the rank of each part where their order matters: an aligned run of the leaves of a
/// binary tree for each. `ranks` is a power of two.
std::vector<int> deal_tree(std::size_t parts, int ranks);

/// Returns the cost of the most loaded rank over the mean of all; 1 where there is no cost.
double imbalance_of(const std::vector<std::int64_t>& costs, const std::vector<int>& dealt,
                    int ranks);

}  // namespace prefopt::detail
