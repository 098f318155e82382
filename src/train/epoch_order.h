// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace prefopt::detail {

/// Returns 0 … count - 1 in an order that seed and epoch alone decide, on every platform.
std::vector<std::size_t> shuffled_order(std::size_t count, std::int64_t seed, std::int64_t epoch);

}  // namespace prefopt::detail
