// SPDX-License-Identifier: Apache-2.0
#include "prefopt/evaluation/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <random>

namespace prefopt {
namespace {

constexpr double kZ = 1.959963984540054;  // 97.5 % of the normal distribution

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Returns the limit of the bootstrap for many values: the mean's normal distribution.
Estimate normal_mean(const std::vector<double>& values) {
  const double mean = mean_of(values);
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const double reach = kZ * std::sqrt(squares) / static_cast<double>(values.size());
  return {mean, mean - reach, mean + reach};
}

}  // namespace

Estimate bootstrap_mean(const std::vector<double>& values, std::uint64_t seed) {
  constexpr std::size_t kResamples = 10000;
  constexpr std::size_t kMostResampled = 10000;
  if (values.size() > kMostResampled) return normal_mean(values);
  std::mt19937_64 rng(seed);
  // The bias of the remainder is below 2^-50 here; distributions differ between standard libraries.
  const auto any = [&] { return values[rng() % values.size()]; };
  std::vector<double> means(kResamples);
  for (double& mean : means) {
    double sum = 0;
    for (std::size_t i = 0; i < values.size(); ++i) sum += any();
    mean = sum / static_cast<double>(values.size());
  }
  std::sort(means.begin(), means.end());
  return {mean_of(values), means[kResamples / 40], means[kResamples - 1 - kResamples / 40]};
}

Estimate wilson_rate(double rate, double trials) {
  const double widening = 1 + kZ * kZ / trials;
  const double center = (rate + kZ * kZ / (2 * trials)) / widening;
  const double reach =
      kZ / widening * std::sqrt(rate * (1 - rate) / trials + kZ * kZ / (4 * trials * trials));
  return {rate, center - reach, center + reach};
}

Estimate correlation(const std::vector<double>& xs, const std::vector<double>& ys) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  if (xs.empty()) return {kNone, -1, 1};
  const double x_mean = mean_of(xs);
  const double y_mean = mean_of(ys);
  double xx = 0;
  double yy = 0;
  double xy = 0;
  for (std::size_t i = 0; i < xs.size(); ++i) {
    const double dx = xs[i] - x_mean;
    const double dy = ys[i] - y_mean;
    xx += dx * dx;
    yy += dy * dy;
    xy += dx * dy;
  }
  if (xx == 0 || yy == 0) return {kNone, -1, 1};
  const double r = std::clamp(xy / std::sqrt(xx * yy), -1.0, 1.0);
  if (xs.size() < 4) return {r, -1, 1};
  const double reach = kZ / std::sqrt(static_cast<double>(xs.size() - 3));
  return {r, std::tanh(std::atanh(r) - reach), std::tanh(std::atanh(r) + reach)};
}

double win_rate(const std::vector<double>& ours, const std::vector<double>& theirs) {
  double wins = 0;
  for (const double our : ours) {
    for (const double their : theirs) wins += our > their ? 1 : our == their ? 0.5 : 0;
  }
  return wins / static_cast<double>(ours.size() * theirs.size());
}

}  // namespace prefopt
