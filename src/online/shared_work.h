// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "dist/meeting.h"
#include "prefopt/online/preference.h"
#include "prefopt/online/rollout.h"

// Results that ranks have computed in shares, brought together in the order of ranks.
namespace prefopt::detail {

std::vector<double> gather_numbers(const std::vector<double>& own, Meeting& meeting);
std::vector<Rollout> gather_rollouts(const std::vector<Rollout>& own, Meeting& meeting);

/// Lets feedback count the failures of all ranks since it had `before`, as if each had heard all
/// answers.
void share_failures(Preference& feedback, const std::vector<std::int64_t>& before,
                    Meeting& meeting);
/// Returns the sum over all ranks.
std::int64_t sum_of(std::int64_t own, Meeting& meeting);

}  // namespace prefopt::detail
