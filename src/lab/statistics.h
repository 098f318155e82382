// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

namespace prefopt::lab {

/// A number and its 95 % confidence interval.
struct Estimate {
  double value = 0;
  double low = 0;
  double high = 0;
};

/// Returns a number that nothing was sampled for.
inline Estimate exactly(double value) { return {value, value, value}; }

/// Instances of an experiment: a seed decides all that one draws.
struct SeedRange {
  int first = 0;
  int count = 0;
};

/// Numbers of instances, a row each.
using BySeed = std::vector<std::vector<double>>;

/// Calls f(seed) for each of them on all threads; results in the order of the seeds.
BySeed for_each_seed(SeedRange seeds, const std::function<std::vector<double>(int seed)>& f);

/// `statistic` of all seeds, with a percentile bootstrap over them (Efron 1979); the same on every
/// platform. It is given the numbers of the seeds to use, repeated as they were drawn.
Estimate bootstrap(std::size_t seeds,
                   const std::function<double(const std::vector<std::size_t>&)>& statistic);

/// Returns the mean over seeds of a column of for_each_seed's result.
Estimate mean(const BySeed& by_seed, std::size_t column);

/// Returns the means of columns [first, first + points).
std::vector<Estimate> means(const BySeed& by_seed, std::size_t first, std::size_t points);

/// Returns the median over seeds of a column.
Estimate median(const BySeed& by_seed, std::size_t column);

/// Returns the same of a column less another, seed by seed.
Estimate mean_difference(const BySeed& by_seed, std::size_t column, std::size_t less);

/// Returns the mean over seeds of (a.first − a.second) − (b.first − b.second), columns all of them.
Estimate difference_of_differences(const BySeed& by_seed, std::pair<std::size_t, std::size_t> a,
                                   std::pair<std::size_t, std::size_t> b);

/// Returns the mean over seeds of one column over that of another.
Estimate mean_ratio(const BySeed& by_seed, std::size_t column, std::size_t over);

/// Of columns [first, first + points), over all seeds.
double largest(const BySeed& by_seed, std::size_t first, std::size_t points);

/// Of columns [first, first + points), over all seeds.
double smallest(const BySeed& by_seed, std::size_t first, std::size_t points);

/// Means over the `seeds` of a resample of columns [first, first + points).
std::vector<double> mean_curve(const BySeed& by_seed, const std::vector<std::size_t>& seeds,
                               std::size_t first, std::size_t points);

/// Slope of the least-squares line through the points.
double slope(const std::vector<double>& xs, const std::vector<double>& ys);

/// Returns the exponent k of y ~ x^k, from root mean squares over seeds: y at xs[i] is column
/// `first_column + i`.
Estimate exponent(const BySeed& by_seed, std::size_t first_column, const std::vector<double>& xs);

/// sqrt(mean of squares) over seeds of a column.
Estimate root_mean_square(const BySeed& by_seed, std::size_t column);

}  // namespace prefopt::lab
