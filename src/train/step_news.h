// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <string>
#include <vector>

#include "prefopt/dist/ranks.h"
#include "train/metrics.h"

namespace prefopt::detail {

/// A rank's message to the others, with its metrics, when its part of a step is done.
struct StepNews {
  std::exception_ptr trouble = {};  ///< null: none
  std::string present = {};         ///< GradientSum::present
  std::vector<double> norms = {};   ///< of the gradients that the rank steps
};

/// Adds up the metrics of all ranks, in one message of all, and returns their news. Throws the
/// trouble of any.
std::vector<StepNews> exchange_news(Ranks& ranks, const StepNews& own, StepMetrics& metrics);

}  // namespace prefopt::detail
