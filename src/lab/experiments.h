// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "lab/experiment.h"

namespace prefopt::lab {

Report dpo_is_rlhf(const Settings& settings);
Report ipo_determinism(const Settings& settings);
Report rdpo_rates(const Settings& settings);
Report hypo_coverage(const Settings& settings);
Report rpo_overoptimization(const Settings& settings);
Report frontier(const Settings& settings);
Report fdpo_frontier(const Settings& settings);
Report vpo_regret(const Settings& settings);
Report noise(const Settings& settings);
Report coverage(const Settings& settings);
Report length(const Settings& settings);
Report neural_noise(const Settings& settings);
Report neural_overoptimization(const Settings& settings);
Report neural_coverage(const Settings& settings);

}  // namespace prefopt::lab
