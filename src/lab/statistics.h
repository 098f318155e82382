// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

namespace prefopt::lab {

/// A number and its 95 % confidence interval.
struct Estimate {
  double value = 0;
  double low = 0;
  double high = 0;
};

/// A number that nothing was sampled for.
inline Estimate exactly(double value) { return {value, value, value}; }

/// Calls f(seed) for seeds 0 … seeds - 1 on all threads; results in the order of the seeds.
std::vector<std::vector<double>> for_each_seed(
    int seeds, const std::function<std::vector<double>(int seed)>& f);

/// `statistic` of all seeds, with a percentile bootstrap over them (Efron 1979); the same on every
/// platform. It is given the numbers of the seeds to use, repeated as they were drawn.
Estimate bootstrap(std::size_t seeds,
                   const std::function<double(const std::vector<std::size_t>&)>& statistic);

/// The mean over seeds of a column of for_each_seed's result.
Estimate mean(const std::vector<std::vector<double>>& by_seed, std::size_t column);

/// Slope of the least-squares line through the points.
double slope(const std::vector<double>& xs, const std::vector<double>& ys);

/// The exponent k of y ~ x^k, from root mean squares over seeds: y at xs[i] is column
/// `first_column + i`.
Estimate exponent(const std::vector<std::vector<double>>& by_seed, std::size_t first_column,
                  const std::vector<double>& xs);

/// sqrt(mean of squares) over seeds of a column.
Estimate root_mean_square(const std::vector<std::vector<double>>& by_seed, std::size_t column);

}  // namespace prefopt::lab
