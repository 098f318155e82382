// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <iosfwd>

#include "cli/commands.h"

namespace prefopt::cli {

/// Prints rewards of steps or tokens, of a model with a reference: lists for both completions of
/// each row, or the lines of candidates with the reward of each completion.
void score_steps(const ScoreArguments& arguments, std::ostream& out, std::ostream& err);

}  // namespace prefopt::cli
