// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "lab/experiment.h"

namespace prefopt::lab {

/// The length of training: a brief one is too short for some of the claims.
enum class Length { kWhole, kBrief };

namespace neural_noise {
Report run(const Settings& settings);
Report run(const Settings& settings, Length length);
}  // namespace neural_noise
namespace neural_overoptimization {
Report run(const Settings& settings);
Report run(const Settings& settings, Length length);
}  // namespace neural_overoptimization
namespace neural_coverage {
Report run(const Settings& settings);
Report run(const Settings& settings, Length length);
}  // namespace neural_coverage
namespace neural_length_bias {
Report run(const Settings& settings);
Report run(const Settings& settings, Length length);
}  // namespace neural_length_bias
namespace neural_kl_placement {
Report run(const Settings& settings);
Report run(const Settings& settings, Length length);
}  // namespace neural_kl_placement
namespace neural_nash {
Report run(const Settings& settings);
Report run(const Settings& settings, Length length);
}  // namespace neural_nash
namespace neural_rso {
Report run(const Settings& settings);
Report run(const Settings& settings, Length length);
}  // namespace neural_rso
namespace neural_reasoning {
Report run(const Settings& settings);
Report run(const Settings& settings, Length length);
}  // namespace neural_reasoning

}  // namespace prefopt::lab
