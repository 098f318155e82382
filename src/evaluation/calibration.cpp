// SPDX-License-Identifier: Apache-2.0
#include "prefopt/evaluation/calibration.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "prefopt/error.h"

namespace prefopt {
namespace {

/// Sums over the pairs of a bin.
struct BinSums {
  std::int64_t count = 0;
  double confidence = 0;
  double right = 0;
};

std::vector<BinSums> sum_bins(const std::vector<double>& probabilities, std::int64_t bins) {
  std::vector<BinSums> sums(static_cast<std::size_t>(bins));
  for (const double p : probabilities) {
    const double confidence = std::max(p, 1 - p);
    const auto bin = std::min(
        static_cast<std::int64_t>((2 * confidence - 1) * static_cast<double>(bins)), bins - 1);
    BinSums& sum = sums[static_cast<std::size_t>(bin)];
    ++sum.count;
    sum.confidence += confidence;
    sum.right += p > 0.5 ? 1 : p == 0.5 ? 0.5 : 0;
  }
  return sums;
}

void check(const std::vector<double>& probabilities, std::int64_t bins) {
  if (bins < 1) {
    throw ConfigError(fmt::format("calibrate: expected at least 1 bin, got {}", bins));
  }
  if (probabilities.empty()) {
    throw DataError("calibrate: expected at least one probability, got none");
  }
  for (const double p : probabilities) {
    if (!(p >= 0 && p <= 1)) {
      throw DataError(fmt::format("calibrate: expected probabilities in [0, 1], got {}", p));
    }
  }
}

}  // namespace

CalibrationCurve calibrate(const std::vector<double>& probabilities, std::int64_t bins) {
  check(probabilities, bins);
  const auto n = static_cast<double>(probabilities.size());
  CalibrationCurve result;
  for (const double p : probabilities) {
    result.log_loss -= std::log(std::max(p, std::numeric_limits<double>::min())) / n;
    result.brier_score += (1 - p) * (1 - p) / n;
  }
  const auto sums = sum_bins(probabilities, bins);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    if (sums[i].count == 0) continue;
    const auto count = static_cast<double>(sums[i].count);
    const auto edge = [&](std::size_t k) {
      return 0.5 + 0.5 * static_cast<double>(k) / static_cast<double>(bins);
    };
    const ReliabilityBin bin{.low = edge(i),
                             .high = edge(i + 1),
                             .count = sums[i].count,
                             .confidence = sums[i].confidence / count,
                             .accuracy = wilson_rate(sums[i].right / count, count)};
    const double error = std::abs(bin.accuracy.mean - bin.confidence);
    result.expected_error += count / n * error;
    result.maximum_error = std::max(result.maximum_error, error);
    result.bins.push_back(bin);
  }
  return result;
}

}  // namespace prefopt
