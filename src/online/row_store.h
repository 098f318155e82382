// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/online/online_options.h"
#include "prefopt/train/state_visitor.h"

namespace prefopt::detail {

/// The rows of all rounds that replay may ask for.
class RowStore {
 public:
  /// Adds the rows of a round, and drops those that `replay` cannot reach any more.
  void add(std::vector<TokenRow> rows, std::int64_t round, const ReplayOptions& replay);
  /// Returns the rows to train on in `round`: its own ones, and of those a rounds before it the
  /// share · decay^(a-1), drawn by (seed, round).
  std::vector<TokenRow> pick(std::int64_t round, const ReplayOptions& replay,
                             std::int64_t seed) const;
  /// `has_rollouts`: the rows have columns of rollouts.
  void visit_state(StateVisitor& visitor, bool has_rollouts);

 private:
  struct StoredRow {
    TokenRow row;
    std::int64_t round;
  };

  std::vector<StoredRow> rows_;
};

/// Rows as tensors, int64 and float64, and back. Columns of rollouts have own tensors, so
/// that the others are those of rows without. `unpack_rows` throws CheckpointError for tensors that
/// hold no rows.
struct PackedRows {
  at::Tensor integers, numbers;
  at::Tensor rollout_integers = {}, rollout_numbers = {};
};
PackedRows pack_rows(const std::vector<TokenRow>& rows);
std::vector<TokenRow> unpack_rows(const PackedRows& packed);

}  // namespace prefopt::detail
