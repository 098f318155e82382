// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace demo {

/// A mean and its 95 % confidence interval.
struct Estimate {
  double mean = 0;
  double low = 0;
  double high = 0;
};

/// Of one value a prompt: percentile bootstrap over the prompts (Efron 1979), the same on every
/// platform for one seed. `values` must not be empty.
Estimate bootstrap_mean(const std::vector<double>& values, std::uint64_t seed);

/// Of a rate over `trials` prompts: Wilson's score interval (1927). Where a prompt counts in part,
/// as by a tie, the interval is wider than it need be.
Estimate wilson_rate(double rate, std::int64_t trials);

/// How often a value of `ours` is above one of `theirs`, over all pairs; ties count half.
double win_rate(const std::vector<double>& ours, const std::vector<double>& theirs);

}  // namespace demo
