// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string_view>

namespace prefopt::detail {

/// The fastest of several runs of the same work: others on the machine only make it slower.
struct Repeated {
  double best = 0;    ///< seconds
  double spread = 0;  ///< of the three fastest, as a share of the fastest
  int runs = 0;

  static constexpr double kClose = 0.05;  ///< spread at which no more runs are made
  static constexpr double kWide = 0.25;   ///< spread at which none of them can be believed
};

/// Calls `run`, which returns its seconds, once to warm up and then 5 to 15 times: until the three
/// fastest are close.
Repeated repeat(const std::function<double()>& run);

/// Throws ConfigError for a spread that is too wide. `work`: "steps of one layer".
void check_spread(const Repeated& repeated, std::string_view work);

}  // namespace prefopt::detail
