// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// Named values in a fixed order; names are TRL's (`rewards/margins`, `logps/chosen`, …).
using Metrics = std::vector<std::pair<std::string, double>>;
/// Returns a value by its name. Throws Error if there is none.
PREFOPT_API double metric(const Metrics& metrics, std::string_view name);

}  // namespace prefopt
