// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "logps/kernels/statistics.h"

namespace prefopt::kernels::cuda {

enum class ElementType { kFloat, kDouble, kBFloat16, kHalf };

/// Rows of logits on the current device, and what is made of a logit. Strides count elements.
struct LogitRows {
  ElementType element;
  const void* logits;
  std::int64_t rows, size, stride;
  const std::int64_t* targets;
  std::int64_t ignored_target;  ///< a row of this target gets zeros
  double scale, softcap, temperature;
  void* gradient;  ///< [rows, size], perhaps the logits; null: not wanted
  std::int64_t gradient_stride;
};

/// statistics [kFewStatistics or kAllStatistics, rows], see statistics.h; the gradient is that of
/// the log-probs. A row whose target is out of range becomes NaN.
cudaError_t score_rows(const LogitRows& rows, bool all_statistics, double* statistics,
                       cudaStream_t stream);

/// Factors of rows in columns as long as there are rows; without `of_p` all are those of the
/// log-prob alone.
struct FactorColumns {
  const double* of_target;
  const double* of_p;
  const double* of_p_log_p;
};

/// The gradient of each row, see RowFactors; logsumexp as score_rows has it.
cudaError_t backpropagate_rows(const LogitRows& rows, const FactorColumns& factors,
                               const double* logsumexp, cudaStream_t stream);

}  // namespace prefopt::kernels::cuda
