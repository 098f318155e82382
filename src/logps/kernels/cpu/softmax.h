// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "logps/kernels/statistics.h"

namespace prefopt::kernels::cpu {

/// z = softcap · tanh(scale · u / softcap) / temperature; softcap 0: no cap.
struct LogitMap {
  double scale = 1;
  double softcap = 0;
  double temperature = 1;

  bool is_identity() const { return scale == 1 && softcap == 0 && temperature == 1; }
};

/// Sums over one row of logits, relative to its maximum.
struct RowMoments {
  double max, sum;              // max z, Σ e^(z − max)
  double target;                // z of the target
  double shifted;               // Σ (z − max) e^(z − max)
  double sum_z, sum_e_squared;  // Σ z, Σ e^(2 (z − max))
};

/// A row of one sure token: its statistics are 0, but for the top-1.
inline constexpr RowMoments kIgnoredRow{0, 1, 0, 0, 0, 1};

double logsumexp_of(const RowMoments& moments);

/// Makes the sums relative to `max`, which is at least their own; returns what they were scaled by.
double rescale(RowMoments& moments, double max);

/// Returns a float64 tensor [kFewStatistics or kAllStatistics, rows], see statistics.h.
at::Tensor statistics_of(const std::vector<RowMoments>& rows, std::int64_t vocab_size, bool all);

/// Moments of the row of `size` raw logits; the last three only if `all`. Element is float, double,
/// c10::BFloat16 or c10::Half.
template <class Element>
RowMoments row_moments(const Element* row, std::int64_t size, std::int64_t target,
                       const LogitMap& map, bool all);

/// The gradient of the row's raw logits with these factors, p = e^(z − logsumexp): that of z times
/// dz/du. May be the row itself.
template <class Element>
void row_gradient(const Element* row, std::int64_t size, std::int64_t target, const LogitMap& map,
                  double logsumexp, const RowFactors& factors, Element* gradient);

/// The factors of rows in a float64 tensor [kLogpFactors or kAllFactors, rows], which has to live
/// as long.
class FactorsOfRows {
 public:
  explicit FactorsOfRows(const at::Tensor& factors)
      : values_(factors.const_data_ptr<double>()),
        rows_(factors.size(1)),
        has_all_(factors.size(0) == kAllFactors) {}

  bool has_all() const { return has_all_; }
  RowFactors operator()(std::int64_t row) const {
    const double* of_row = values_ + row;
    if (!has_all_) return {*of_row, *of_row, 0};
    return {of_row[kOfTarget * rows_], of_row[kOfP * rows_], of_row[kOfPLogP * rows_]};
  }

 private:
  const double* values_;
  std::int64_t rows_;
  bool has_all_;
};

/// A block of logits as the head's product leaves it: a row a vocabulary entry, a column a token,
/// so that a SIMD lane is a token. Columns are independent, also those of the padding to a multiple
/// of a vector.
template <class T>
struct LogitBlock {
  T* data;
  std::int64_t rows, columns, stride;
};

/// Sums over the rows of a block, one number a column, each relative to the block's own maximum.
/// The last three are null if not wanted.
template <class T>
struct BlockMoments {
  T *max, *sum;
  T *shifted, *sum_z, *sum_e_squared;
};

/// Adds bias[row] (null: none) and applies the map, in place.
template <class T>
void map_block(LogitBlock<T> block, const T* bias, const LogitMap& map);

template <class T>
void block_moments(LogitBlock<T> block, BlockMoments<T> moments);

/// Numbers of the columns of a block. logsumexp is the sum of two, so that a large one loses
/// nothing; of_p_log_p is null where all are 0.
template <class T>
struct ColumnFactors {
  const T *logsumexp_high, *logsumexp_low;
  const T *of_p, *of_p_log_p;
};

/// gradient = −(of_p · p + of_p_log_p · p log p) · dz/du, where p = e^(z − logsumexp), without the
/// target's share. May be the block itself.
template <class T>
void block_gradient(LogitBlock<T> logits, const ColumnFactors<T>& factors, const LogitMap& map,
                    LogitBlock<T> gradient);

/// e^(z − max[column]) · dz/du, in place.
template <class T>
void block_weights(LogitBlock<T> block, const T* max, const LogitMap& map);

/// dz/du at z.
double slope(const LogitMap& map, double z);

}  // namespace prefopt::kernels::cpu
