// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "lab/experiment.h"

namespace prefopt::lab {

/// The length of training: a brief one is too short for some of the claims.
enum class Length { kWhole, kBrief };

Report neural_noise(const Settings& settings, Length length);
Report neural_overoptimization(const Settings& settings, Length length);
Report neural_coverage(const Settings& settings, Length length);
Report neural_length_bias(const Settings& settings, Length length);
Report neural_kl_placement(const Settings& settings, Length length);
Report neural_nash(const Settings& settings, Length length);
Report neural_rso(const Settings& settings, Length length);
Report neural_reasoning(const Settings& settings, Length length);

/// Twins of experiments on tables.
Report neural_length_bias(const Settings& settings);
Report neural_kl_placement(const Settings& settings);
Report neural_nash(const Settings& settings);
Report neural_rso(const Settings& settings);

}  // namespace prefopt::lab
