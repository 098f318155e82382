// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// A value and its 95 % confidence interval.
struct Estimate {
  double mean = 0;
  double low = 0;
  double high = 0;
};

/// Returns the mean of `values`, one per row, with a percentile bootstrap over the rows (Efron
/// 1979), the same on every platform for one seed; for more than 10,000 values with mean ± 1.96
/// standard errors, its limit at no cost. `values` must not be empty.
PREFOPT_API Estimate bootstrap_mean(const std::vector<double>& values, std::uint64_t seed);

/// Returns a rate over `trials` rows, at least one, with Wilson's score interval (1927). If a row
/// counts in part, as a tie does, the interval is wider than necessary.
PREFOPT_API Estimate wilson_rate(double rate, double trials);

/// Returns Pearson's correlation with Fisher's interval tanh(atanh(r) ± 1.96 / sqrt(n - 3)) (1921).
/// NaN if one of the lists is constant; [-1, 1] for fewer than four rows.
PREFOPT_API Estimate correlation(const std::vector<double>& xs, const std::vector<double>& ys);

/// Returns how often a value of `ours` is above one of `theirs`, over all pairs; ties count half.
PREFOPT_API double win_rate(const std::vector<double>& ours, const std::vector<double>& theirs);

}  // namespace prefopt
