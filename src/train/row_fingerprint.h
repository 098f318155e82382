// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "prefopt/data/batch.h"

namespace prefopt::detail {

/// Returns a hash of the content of rows, whatever file they are from.
std::string fingerprint_of(const std::vector<TokenRow>& rows);

}  // namespace prefopt::detail
