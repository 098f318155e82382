// SPDX-License-Identifier: Apache-2.0
#include "lab/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "core/parallel.h"
#include "prefopt/exact/random.h"

namespace prefopt::lab {
namespace {

using Seeds = std::vector<std::size_t>;

double root_mean_square_of(const BySeed& by_seed, const Seeds& seeds, std::size_t column) {
  double sum = 0;
  for (const std::size_t seed : seeds) sum += by_seed[seed][column] * by_seed[seed][column];
  return std::sqrt(sum / static_cast<double>(seeds.size()));
}

}  // namespace

BySeed for_each_seed(SeedRange seeds, const std::function<std::vector<double>(int)>& f) {
  BySeed results(static_cast<std::size_t>(seeds.count));
  parallel_for(0, seeds.count, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      results[static_cast<std::size_t>(i)] = f(seeds.first + static_cast<int>(i));
    }
  });
  return results;
}

Estimate bootstrap(std::size_t seeds, const std::function<double(const Seeds&)>& statistic) {
  constexpr std::size_t kResamples = 1000;
  Seeds drawn(seeds);
  std::iota(drawn.begin(), drawn.end(), std::size_t{0});
  const double value = statistic(drawn);
  exact::Random random(0);
  std::vector<double> values(kResamples);
  for (double& resampled : values) {
    for (std::size_t& seed : drawn) {
      seed = static_cast<std::size_t>(random.below(static_cast<Eigen::Index>(seeds)));
    }
    resampled = statistic(drawn);
  }
  std::sort(values.begin(), values.end());
  return {value, values[kResamples / 40], values[kResamples - 1 - kResamples / 40]};
}

Estimate mean(const BySeed& by_seed, std::size_t column) {
  return bootstrap(by_seed.size(), [&](const Seeds& seeds) {
    return mean_curve(by_seed, seeds, column, 1).front();
  });
}

std::vector<Estimate> means(const BySeed& by_seed, std::size_t first, std::size_t points) {
  std::vector<Estimate> result;
  for (std::size_t i = 0; i < points; ++i) result.push_back(mean(by_seed, first + i));
  return result;
}

Estimate median(const BySeed& by_seed, std::size_t column) {
  return bootstrap(by_seed.size(), [&](const Seeds& seeds) {
    std::vector<double> values;
    for (const std::size_t seed : seeds) values.push_back(by_seed[seed][column]);
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    if (values.size() % 2 == 1) return *middle;
    return (*middle + *std::max_element(values.begin(), middle)) / 2;
  });
}

Estimate mean_difference(const BySeed& by_seed, std::size_t column, std::size_t less) {
  BySeed differences;
  for (const auto& row : by_seed) differences.push_back({row[column] - row[less]});
  return mean(differences, 0);
}

Estimate difference_of_differences(const BySeed& by_seed, std::pair<std::size_t, std::size_t> a,
                                   std::pair<std::size_t, std::size_t> b) {
  BySeed differences;
  for (const auto& row : by_seed) {
    differences.push_back({row[a.first] - row[a.second], row[b.first] - row[b.second]});
  }
  return mean_difference(differences, 0, 1);
}

Estimate mean_ratio(const BySeed& by_seed, std::size_t column, std::size_t over) {
  return bootstrap(by_seed.size(), [&](const Seeds& seeds) {
    return mean_curve(by_seed, seeds, column, 1).front() /
           mean_curve(by_seed, seeds, over, 1).front();
  });
}

double largest(const BySeed& by_seed, std::size_t first, std::size_t points) {
  double most = by_seed.at(0)[first];
  for (const auto& row : by_seed) {
    for (std::size_t i = 0; i < points; ++i) most = std::max(most, row[first + i]);
  }
  return most;
}

double smallest(const BySeed& by_seed, std::size_t first, std::size_t points) {
  double least = by_seed.at(0)[first];
  for (const auto& row : by_seed) {
    for (std::size_t i = 0; i < points; ++i) least = std::min(least, row[first + i]);
  }
  return least;
}

std::vector<double> mean_curve(const BySeed& by_seed, const Seeds& seeds, std::size_t first,
                               std::size_t points) {
  std::vector<double> curve(points, 0);
  for (const std::size_t seed : seeds) {
    for (std::size_t i = 0; i < points; ++i) curve[i] += by_seed[seed][first + i];
  }
  for (double& value : curve) value /= static_cast<double>(seeds.size());
  return curve;
}

double slope(const std::vector<double>& xs, const std::vector<double>& ys) {
  const auto n = static_cast<double>(xs.size());
  const double x_mean = std::accumulate(xs.begin(), xs.end(), 0.0) / n;
  const double y_mean = std::accumulate(ys.begin(), ys.end(), 0.0) / n;
  double xy = 0, xx = 0;
  for (std::size_t i = 0; i < xs.size(); ++i) {
    xy += (xs[i] - x_mean) * (ys[i] - y_mean);
    xx += (xs[i] - x_mean) * (xs[i] - x_mean);
  }
  return xy / xx;
}

Estimate exponent(const BySeed& by_seed, std::size_t first_column, const std::vector<double>& xs) {
  std::vector<double> log_xs;
  for (const double x : xs) log_xs.push_back(std::log(x));
  return bootstrap(by_seed.size(), [&](const Seeds& seeds) {
    std::vector<double> log_ys;
    for (std::size_t i = 0; i < xs.size(); ++i) {
      log_ys.push_back(std::log(root_mean_square_of(by_seed, seeds, first_column + i)));
    }
    return slope(log_xs, log_ys);
  });
}

Estimate root_mean_square(const BySeed& by_seed, std::size_t column) {
  return bootstrap(by_seed.size(),
                   [&](const Seeds& seeds) { return root_mean_square_of(by_seed, seeds, column); });
}

}  // namespace prefopt::lab
