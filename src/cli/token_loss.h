// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <iosfwd>

#include "cli/commands.h"

namespace prefopt::cli {

/// Evaluates a loss on the tokens of given completions on `rollouts`.
void run_token_loss(const LossArguments& arguments, std::ostream& out);

}  // namespace prefopt::cli
