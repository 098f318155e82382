// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace prefopt::kernels {

/// The statistics of a row of logits, as the kernels of every device write them: row k of a float64
/// tensor [kFewStatistics or kAllStatistics, rows] holds statistic k.
enum Statistic {
  kLogp,           // z[target] - logsumexp
  kLogsumexp,      // log sum exp z
  kIsTop1,         // 1 where z[target] is the maximum
  kFewStatistics,  // the rest costs a few more operations a logit
  kEntropy = kFewStatistics,
  kMeanLogit,
  kLogSumPSquared,
  kAllStatistics,
};

}  // namespace prefopt::kernels
