// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <vector>

#include "prefopt/dist/ranks.h"
#include "prefopt/losses/loss.h"
#include "prefopt/losses/pair_logps.h"
#include "train/step_plan.h"

namespace prefopt::detail {

/// Thrown where another rank has trouble, which comes with the next message of all ranks.
struct TroubleElsewhere {};

/// Returns what a loss needs of all rows of a step, in its order. `measure` returns that of this
/// rank's parts, on `device`; ranks tell each other the rest in one message, in float64. Throws
/// what `measure` throws, TroubleElsewhere where it throws on another rank.
PairLogps gather_inputs(const StepPlan& plan, const LossRequirements& needs, Ranks& ranks,
                        at::Device device, const std::function<std::vector<PairLogps>()>& measure);

}  // namespace prefopt::detail
