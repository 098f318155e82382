// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/json.h"
#include "dist/meeting.h"
#include "prefopt/run/run.h"

// The options that the ranks of a run share, and those that each has for itself.
namespace prefopt::detail {

/// Throws ConfigError on all ranks, "rank 1: …", where one has other options than rank 0: but for
/// paths, whose contents are compared once they are read, and threads.
void check_same_options(const RunOptions& options, Meeting& meeting);

/// Throws ConfigError on all ranks where one has read other rows or weights than rank 0.
/// `contents`: hashes, as check_same_run has them.
void check_same_contents(const Json& contents, const RunOptions& options, Meeting& meeting);

/// Returns the threads of this process where the options leave them open: its part of the machine's
/// processors. 0: it is the only one.
int default_threads(const Ranks& ranks);

/// Adds to env.json's facts how many ranks there are, who started them, how they talk, and the
/// machine of each.
void add_ranks(Json& environment, Meeting& meeting);

}  // namespace prefopt::detail
