// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"

namespace prefopt::detail {

/// Which evaluated steps were the best, and whether waiting for a better one has lasted too long.
class Selection {
 public:
  /// `metric` decides what is better: less of one that ends in `loss` or `kl`, more of any other.
  /// `patience` 0: waits for ever.
  Selection(std::string_view metric, std::int64_t keep_best, std::int64_t patience);

  /// Whether the step is one of the `keep_best` best so far. A value that is not finite never is.
  bool add(std::int64_t step, double value);
  /// Whether the last `patience` evaluations brought no new best.
  bool is_exhausted() const { return patience_ > 0 && since_best_ >= patience_; }
  /// Best first, at most `keep_best`.
  std::vector<std::int64_t> best_steps() const;

  Json state() const;
  /// Of `state`; throws a JSON exception for anything else.
  void load(const Json& state);

 private:
  bool is_better(double value, double than) const { return less_ ? value < than : value > than; }

  bool less_;
  std::int64_t keep_best_;
  std::int64_t patience_;
  std::vector<std::pair<std::int64_t, double>> best_;  // step, value; at least one is remembered
  std::int64_t since_best_ = 0;
};

}  // namespace prefopt::detail
