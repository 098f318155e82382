// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <string_view>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// The place after the last token of each step of a completion, ascending; the last one is the end
/// of the completion.
using StepEnds = std::vector<std::int64_t>;

/// How rewards of steps become one of the completion.
enum class StepAggregate {
  kMin,   ///< the worst step
  kMean,  ///< their mean
  kLast,  ///< the last step
  kSum,   ///< their sum: the reward of the completion as a whole
};

/// Returns the sums of numbers of tokens over each step (2412.01981 section 3: q_end − q_start of
/// process values). Throws ShapeError, led by `where`, for ends that do not ascend to the number of
/// tokens.
PREFOPT_API Eigen::ArrayXd step_sums(const Eigen::ArrayXd& of_tokens, const StepEnds& ends,
                                     std::string_view where);

/// Returns one number of steps' numbers, of which there is at least one (ShapeError).
PREFOPT_API double aggregate_steps(const Eigen::ArrayXd& of_steps, StepAggregate aggregate);

/// Throws ShapeError, led by `where`, for ends that do not ascend to `tokens`.
PREFOPT_API void check_step_ends(const StepEnds& ends, std::int64_t tokens, std::string_view where);

/// Returns ends at which each token is a step.
PREFOPT_API StepEnds every_token(std::int64_t tokens);

}  // namespace prefopt
