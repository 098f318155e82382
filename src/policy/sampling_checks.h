// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "prefopt/policy/sampling.h"

namespace prefopt::detail {

/// Throws what `sample` throws for options that do not fit each other, the policy or the number of
/// prompts.
void check_sampling(const SamplingOptions& options, const Policy& policy, std::int64_t prompts);

}  // namespace prefopt::detail
