// SPDX-License-Identifier: Apache-2.0
#include "core/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace prefopt::detail {
namespace {

// Edits that turn `a` into `b`: insert, delete, replace, or swap two neighbours.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), above(b.size() + 1), row(b.size() + 1);
  std::iota(above.begin(), above.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    before.swap(above);
    above.swap(row);
  }
  return above[b.size()];
}

}  // namespace

std::string nearest(std::string_view name, const std::vector<std::string_view>& candidates) {
  std::string best;
  // What people type from memory is often the start of a name: better than nothing.
  constexpr std::size_t kPrefix = 1000;
  std::size_t best_distance = kPrefix + 1;
  for (std::string_view candidate : candidates) {
    const std::size_t most = std::max<std::size_t>(1, candidate.size() / 3);
    // A name may be as long as a file; its length alone tells that it is none of these.
    std::size_t distance =
        name.size() > candidate.size() + most ? most + 1 : edit_distance(name, candidate);
    if (distance > most || distance >= name.size()) {
      if (std::min(name.size(), candidate.size()) < 3 ||
          !(candidate.starts_with(name) || name.starts_with(candidate))) {
        continue;
      }
      distance = kPrefix;
    }
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string did_you_mean(std::string_view name, const std::vector<std::string_view>& candidates) {
  const std::string near = nearest(name, candidates);
  return near.empty() ? "" : fmt::format("; did you mean '{}'?", near);
}

}  // namespace prefopt::detail
