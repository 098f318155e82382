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

/// Factors of the gradient of a row's logits:
/// of_target · onehot − of_p · p − of_p_log_p · p log p, where p = softmax(z).
struct RowFactors {
  double of_target, of_p, of_p_log_p;
};

/// The rows of a float64 tensor [kLogpFactors or kAllFactors, rows] of them: the gradient of the
/// log-prob alone has the same factor of the target and of p, and none of p log p.
enum FactorRow {
  kOfTarget,
  kLogpFactors,
  kOfP = kLogpFactors,
  kOfPLogP,
  kAllFactors,
};

}  // namespace prefopt::kernels
