// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "report/run_record.h"

namespace prefopt::detail {

/// Returns the curves of a run as HTML figures with captions; what a run does not have is left out.
std::string charts_html(const RunRecord& record);

/// At most `most` points: means over neighbours, of the values that are finite.
Curve thinned(const Curve& curve, std::size_t most);

}  // namespace prefopt::detail
