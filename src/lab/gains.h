// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/exact/pairs.h"
#include "prefopt/exact/policy.h"

namespace prefopt::lab {

/// Expected reward above the reference's.
double gain(const exact::Table& logps, const exact::Table& ref, const exact::Table& rewards);

/// Mean log-prob of the chosen above the reference's, nats.
double chosen_gain(const exact::Table& logps, const exact::Table& ref, const exact::Pairs& pairs);

}  // namespace prefopt::lab
