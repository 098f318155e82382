// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "prefopt/policy/policy.h"
#include "prefopt/run/run.h"
#include "run/run_folder.h"
#include "run/run_loss.h"

// Checks of a run whose policy, reference and rows a program gives.
namespace prefopt::detail {

/// Throws ConfigError for options of models and rows where a program gives those, and for options
/// that would not reach them.
void check_program_options(const RunOptions& options);

/// Throws ConfigError for a loss that draws samples which nothing would end.
void check_end_of_samples(const RunLoss& loss, const SamplingOptions& sampling);

/// Saves the policy once and reads it back, so that a run does not find out at its end that it
/// cannot be saved or resumed. Throws what `save` throws; `note` receives why it cannot be resumed.
void try_saving(Policy& policy, const std::string& folder, const Note& note);

}  // namespace prefopt::detail
