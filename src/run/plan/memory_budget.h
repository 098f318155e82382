// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/run/run.h"
#include "run/plan/assumptions.h"
#include "run/run_folder.h"
#include "run/run_rows.h"

namespace prefopt::detail {

/// Chooses checkpointing, the tokens of micro-batches and the head's budget together, so that the
/// run fits `machine.memory_budget_mib` by its plan: of the choices that fit the one with the
/// fewest operations. What the options say of their own stays: a checkpointing, `batch.micro_rows`
/// and `batch.micro_tokens` as limits, the head's budget as the most. Nothing of it changes a
/// result. Does nothing without a budget. Throws ConfigError, with the least plan, where nothing
/// fits, and for a run that a plan does not count.
void fit_memory(RunOptions& options, const RunRows& rows, const PlanAssumptions& machine,
                const Note& note);

}  // namespace prefopt::detail
