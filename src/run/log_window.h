// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/json.h"
#include "prefopt/train/trainer.h"

namespace prefopt::detail {

/// The steps since the last line of metrics, for the line that follows. Of one step it is that
/// step's metrics as they are. Of several it is each metric's mean over those with an update,
/// weighted by how many values the metric of a step is a mean of; `learning_rate` and `num_tokens`
/// are the last ones, and `skipped` counts the steps without an update.
class LogWindow {
 public:
  /// `counts`: of Trainer::step_counts; a metric that is not among them has weight 1, but for the
  /// margins of unpaired rows, which are those of the two means.
  void add(const Metrics& metrics, const Metrics& counts);
  std::int64_t steps() const { return steps_; }
  Metrics mean() const;
  void clear() { *this = {}; }

  /// For a checkpoint.
  Json state() const;
  /// Takes what `state` gave; throws a JSON exception for anything else.
  void load(const Json& state);

 private:
  struct Sum {
    std::string name;
    double value = 0;
    double weight = 0;
  };

  std::int64_t steps_ = 0;
  std::int64_t skipped_ = 0;
  std::vector<Sum> sums_;  ///< of steps with an update
  Metrics last_;           ///< of the last step
};

}  // namespace prefopt::detail
