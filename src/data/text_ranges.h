// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "prefopt/data/records.h"

namespace prefopt::detail {

/// Returns the parts of `ranges` that lie in [begin, end), counted from `begin`.
inline std::vector<TextRange> within(std::span<const TextRange> ranges, std::size_t begin,
                                     std::size_t end) {
  std::vector<TextRange> result;
  for (const TextRange& range : ranges) {
    const TextRange part{std::max(range.begin, begin), std::min(range.end, end)};
    if (part.begin < part.end) result.push_back({part.begin - begin, part.end - begin});
  }
  return result;
}

}  // namespace prefopt::detail
