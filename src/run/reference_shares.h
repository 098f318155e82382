// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "dist/meeting.h"
#include "prefopt/losses/loss.h"
#include "prefopt/policy/reference.h"
#include "prefopt/run/run.h"
#include "run/run_folder.h"
#include "run/run_rows.h"

namespace prefopt::detail {

/// Lets several ranks share a reference that is a cache; does nothing for another one.
void share_cache(Reference* reference, const Meeting& meeting);

/// Lets each rank score its part of the rows that the steps of the run take and of those held out,
/// so that in a later epoch a row is known to whichever rank gets it. Does nothing for one rank, or
/// a reference that is no cache.
void score_ahead(Reference* reference, const RunRows& rows, const LossRequirements& needs,
                 const RunOptions& options, Meeting& meeting, const Note& note);

}  // namespace prefopt::detail
