// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "lab/experiment.h"

namespace prefopt::lab {

/// The length of training: a brief one is too short for some of the claims.
enum class Length { kWhole, kBrief };

Report neural_noise(const Settings& settings, Length length);
Report neural_overoptimization(const Settings& settings, Length length);
Report neural_coverage(const Settings& settings, Length length);
Report neural_reasoning(const Settings& settings, Length length);

}  // namespace prefopt::lab
