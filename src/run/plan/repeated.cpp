// SPDX-License-Identifier: Apache-2.0
#include "run/plan/repeated.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

constexpr std::size_t kLeast = 5, kMost = 15, kFastest = 3;

}  // namespace

Repeated repeat(const std::function<double()>& run) {
  run();
  std::vector<double> seconds;
  Repeated repeated;
  while (seconds.size() < kLeast ||
         (seconds.size() < kMost && repeated.spread > Repeated::kClose)) {
    seconds.push_back(run());
    std::sort(seconds.begin(), seconds.end());
    repeated.best = seconds.front();
    repeated.spread = seconds[std::min(kFastest, seconds.size()) - 1] / seconds.front() - 1;
  }
  repeated.runs = static_cast<int>(seconds.size());
  return repeated;
}

void check_spread(const Repeated& repeated, std::string_view work) {
  if (repeated.spread <= Repeated::kWide) return;
  throw ConfigError(fmt::format(
      "--calibrate: expected {} that take the same time, got a spread of {:.0f} % of the three "
      "fastest of {}; close other programs, or give --layers-tflops, --head-tflops, --memory-gb-s "
      "and --fixed-ms",
      work, 100 * repeated.spread, repeated.runs));
}

}  // namespace prefopt::detail
