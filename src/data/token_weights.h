// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "prefopt/data/batch.h"

namespace prefopt {

/// Throws ShapeError or DtypeError where a batch has token_weights that are not one float64 for
/// each of its completion tokens.
void check_token_weights(const TokenBatch& batch, std::string_view where);

}  // namespace prefopt
