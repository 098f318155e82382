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

/// Of one value a row: percentile bootstrap over the rows (Efron 1979), the same on every platform
/// for one seed; of more than 10,000 values mean ± 1.96 standard errors, which is its limit at no
/// cost. `values` must not be empty.
PREFOPT_API Estimate bootstrap_mean(const std::vector<double>& values, std::uint64_t seed);

/// Of a rate over `trials` rows, at least one: Wilson's score interval (1927). Where a row counts
/// in part, as by a tie, the interval is wider than it need be.
PREFOPT_API Estimate wilson_rate(double rate, double trials);

/// Pearson's correlation with Fisher's interval tanh(atanh(r) ± 1.96 / sqrt(n - 3)) (1921). NaN
/// where one of the lists is constant; [-1, 1] for fewer than four rows.
PREFOPT_API Estimate correlation(const std::vector<double>& xs, const std::vector<double>& ys);

/// How often a value of `ours` is above one of `theirs`, over all pairs; ties count half.
PREFOPT_API double win_rate(const std::vector<double>& ours, const std::vector<double>& theirs);

}  // namespace prefopt
