// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

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

}  // namespace prefopt::detail
