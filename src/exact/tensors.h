// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/exact/pair_logps.h"
#include "prefopt/losses/pair_logps.h"

namespace prefopt::exact {

/// Returns the arrays as float64 tensors over the same memory, which has to outlive them.
PairLogps as_tensors(const ExactPairLogps& in);

/// Returns a copy as arrays.
ExactLossOutput as_arrays(const LossOutput& out);

}  // namespace prefopt::exact
