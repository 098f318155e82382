// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "prefopt/run/run.h"

namespace prefopt::cli {

/// Returns the options of a JSON file with `a.b=value` of `sets` applied in order; without a file,
/// of those alone. `moves` receives what stands in a former place. Throws ConfigError.
RunOptions read_run_config(const std::string& path, const std::vector<std::string>& sets,
                           std::vector<std::string>& moves);

}  // namespace prefopt::cli
