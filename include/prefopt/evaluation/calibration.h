// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "prefopt/evaluation/statistics.h"
#include "prefopt/export.h"

namespace prefopt {

/// Pairs whose confidence lies in [low, high), the last bin's in [low, high].
struct ReliabilityBin {
  double low = 0;
  double high = 0;
  std::int64_t count = 0;
  double confidence = 0;  ///< mean
  Estimate accuracy;      ///< share that is correct, Wilson's interval
};

/// How well predicted preference probabilities match observed frequencies.
struct CalibrationCurve {
  std::vector<ReliabilityBin> bins;  ///< those that hold a pair, of equal width over [1/2, 1]
  double expected_error = 0;  ///< ECE (1706.04599, eq. 5): Σ count / n · |accuracy − confidence|
  double maximum_error = 0;   ///< MCE (eq. 6): the largest of these differences
  double log_loss = 0;        ///< mean of −log p, nats, at most 708 each: log 2 at p = 1/2
  double brier_score = 0;     ///< mean of (1 − p)²
};

/// Measures calibration. `probabilities` are those of the preferred completions, p = σ(margin),
/// each in [0, 1]. The confidence is max(p, 1 − p); the prediction is correct if p > 1/2, half
/// correct at p = 1/2. Throws DataError for an empty list or a value outside, ConfigError for fewer
/// than one bin.
PREFOPT_API CalibrationCurve calibrate(const std::vector<double>& probabilities,
                                       std::int64_t bins = 10);

}  // namespace prefopt
