// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"
#include "prefopt/train/row_source.h"

namespace prefopt {

namespace detail {
class WeightedOrder;
}

struct EpochOptions {
  std::int64_t batch_size = 16;  ///< rows per step; the last of an epoch takes some of the next
  std::int64_t seed = 0;         ///< of the order
  bool shuffle = true;           ///< a new order each epoch
};

/// Rows that follow each other and are equally often in an epoch.
struct EpochPart {
  std::int64_t rows = 0;
  double weight = 1;  ///< times that an epoch has each of them; of a fraction a share, in turn
};

/// Given rows, and which of them budgets have shortened.
struct EpochData {
  std::vector<TokenRow> rows;
  std::vector<TokenRow> held_out = {};
  std::vector<bool> is_cut = {}, is_held_out_cut = {};   ///< empty: none is
  std::shared_ptr<const Tokenizer> tokenizer = nullptr;  ///< for the texts of samples
  std::vector<EpochPart> parts = {};  ///< of `rows`; empty: each row once an epoch
};

/// The rows of a file, epoch after epoch. The order is a pure function of seed and position: the
/// generators and distributions used are the same on every platform.
class PREFOPT_API EpochRows final : public RowSource {
 public:
  /// Throws ConfigError for no rows, a batch size below 1, or parts that are not those of the rows.
  EpochRows(EpochData data, const EpochOptions& options);

  StepRows next(Policy& policy) override;
  void finish_step() override;
  const StepRows& held_out() const override { return held_out_; }
  std::int64_t rows_an_epoch() const override;
  /// Throws CheckpointError if the saved rows are not those that follow the saved position.
  void visit_state(StateVisitor& visitor) override;
  std::string fingerprint() const override;
  std::string text_of(const std::vector<std::int64_t>& tokens) const override;

 private:
  std::vector<std::int64_t> next_numbers();

  EpochData data_;
  EpochOptions options_;
  StepRows held_out_;
  std::int64_t position_ = 0;  ///< in the endless stream of epochs
  std::shared_ptr<detail::WeightedOrder> order_;
};

}  // namespace prefopt
