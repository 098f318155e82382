// SPDX-License-Identifier: Apache-2.0
#include "statistics.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <random>

namespace demo {
namespace {

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

Estimate bootstrap_mean(const std::vector<double>& values, std::uint64_t seed) {
  constexpr std::size_t kResamples = 10000;
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

Estimate wilson_rate(double rate, std::int64_t trials) {
  constexpr double kZ = 1.959963984540054;  // 97.5 % of the normal distribution
  const auto n = static_cast<double>(trials);
  const double widening = 1 + kZ * kZ / n;
  const double center = (rate + kZ * kZ / (2 * n)) / widening;
  const double reach = kZ / widening * std::sqrt(rate * (1 - rate) / n + kZ * kZ / (4 * n * n));
  return {rate, center - reach, center + reach};
}

double win_rate(const std::vector<double>& ours, const std::vector<double>& theirs) {
  double wins = 0;
  for (const double our : ours) {
    for (const double their : theirs) wins += our > their ? 1 : our == their ? 0.5 : 0;
  }
  return wins / static_cast<double>(ours.size() * theirs.size());
}

}  // namespace demo
