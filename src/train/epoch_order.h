// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "prefopt/train/epoch_rows.h"

namespace prefopt::detail {

/// Returns 0 … count - 1 in an order that seed and epoch alone decide, on every platform.
std::vector<std::size_t> shuffled_order(std::size_t count, std::int64_t seed, std::int64_t epoch);

/// Returns the steps of `epochs` passes over `rows`, at least one.
std::int64_t count_epoch_steps(double epochs, double rows, std::int64_t rows_a_step);

/// The endless stream of 0 … count - 1, pass after pass, each in the order of its number.
class EndlessOrder {
 public:
  EndlessOrder(std::size_t count, std::int64_t seed, bool shuffles = true);

  std::size_t at(std::int64_t position);

 private:
  std::int64_t seed_;
  bool shuffles_;
  std::vector<std::size_t> order_;
  std::int64_t epoch_ = -1;  ///< of `order_`
};

/// The endless stream of rows in parts with weights. An epoch has round(weight · rows) rows of a
/// part, at least one: the next ones of the part's own endless order, so that over the epochs all
/// of its rows come equally often.
class WeightedOrder {
 public:
  WeightedOrder(const std::vector<EpochPart>& parts, std::int64_t seed, bool shuffles);

  std::size_t at(std::int64_t position);
  /// Returns the rows of an epoch.
  std::int64_t count() const { return count_; }

 private:
  struct Part {
    EndlessOrder order;
    std::size_t begin;   ///< the first of its rows
    std::int64_t quota;  ///< rows an epoch
  };
  void order_epoch(std::int64_t epoch);

  std::int64_t seed_;
  bool shuffles_;
  std::int64_t count_ = 0;
  std::vector<Part> parts_;
  std::vector<std::size_t> order_;
  std::int64_t epoch_ = -1;  ///< of `order_`
};

}  // namespace prefopt::detail
