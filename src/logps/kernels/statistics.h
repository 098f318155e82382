// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace prefopt::kernels {

/// What the kernels of every device write of a row of logits: row k of a float64 tensor
/// [kFewStatistics or kAllStatistics, rows] holds statistic k.
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
