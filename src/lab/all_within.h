// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>

#include "lab/experiment.h"

namespace prefopt::lab {

/// Holds where the whole interval is nearer than `distance` to `middle`.
inline Verdict all_within(std::string claim, const Estimate& measured, double middle,
                          double distance) {
  Verdict verdict = within(std::move(claim), measured, middle, distance);
  verdict.holds = measured.low > middle - distance && measured.high < middle + distance;
  return verdict;
}

}  // namespace prefopt::lab
