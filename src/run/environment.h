// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/json.h"

namespace prefopt::detail {

/// All that may decide a result besides the config, for env.json: versions of prefopt, LibTorch and
/// the compiler, threads, processor, memory, system, and the command with its folder and time. What
/// this system does not tell is left out.
Json environment();

/// This moment as `2026-01-31T23:59:59Z`.
std::string utc_time();

}  // namespace prefopt::detail
