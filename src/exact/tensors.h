// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/exact/pair_logps.h"
#include "prefopt/losses/pair_logps.h"

namespace prefopt::exact {

/// The arrays as float64 tensors over the same memory, which has to outlive them.
PairLogps as_tensors(const ExactPairLogps& in);

/// A copy as arrays.
ExactLossOutput as_arrays(const LossOutput& out);

}  // namespace prefopt::exact
