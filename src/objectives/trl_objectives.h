// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/json.h"

namespace prefopt::detail {

/// Returns whether a config is one of TRL's GRPOTrainer or RLOOTrainer.
bool is_trl_objective(const Json& config);
/// Returns the options that TRL 1.16 trains with by such a config, by its defaults. Throws
/// ConfigError for a key that these trainers do not have, one that the objective cannot follow, and
/// one whose place is elsewhere in a run.
Json options_of_trl(const Json& config);

}  // namespace prefopt::detail
