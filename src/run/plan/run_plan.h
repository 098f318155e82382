// SPDX-License-Identifier: Apache-2.0
#pragma once

// The plan of a run: memory, operations, imbalance, collectives and time of its steps, from its
// options and its rows, before a weight is read.

#include <cstdint>
#include <string>
#include <vector>

#include "decoder/model_shape.h"
#include "prefopt/run/run.h"
#include "run/plan/assumptions.h"
#include "run/plan/dealing.h"
#include "run/plan/memory_plan.h"
#include "run/plan/step_work.h"
#include "run/plan/time_plan.h"
#include "run/run_rows.h"

namespace prefopt::detail {

/// The models of a run by their sizes.
struct RunModels {
  ModelShape policy;
  std::int64_t frozen_reference = 0;  ///< bytes of a reference apart from the policy, if whole
  bool has_reference = false;
  bool has_live_reference = false;  ///< each step takes a forward pass of it
  StepModels step;

  /// Looks at config files alone. Throws ConfigError for options that a plan does not know, and as
  /// loading the models does.
  static RunModels of(const RunOptions& options, const PlanAssumptions& machine);
};

/// Memory that layers keep for the backward pass, with a choice of checkpointing.
struct ActivationLevel {
  Checkpointing checkpointing = Checkpointing::kNone;
  std::int64_t bytes = 0;
  bool is_chosen = false;
};

struct DealingPlan {
  DealingRule rule = DealingRule::kLongestFirst;
  double mean_share = 1;  ///< of the slowest rank's work that a rank has, mean over steps
  double least_share = 1;
  double imbalance = 1;  ///< imbalance_of in tokens, which dealing goes by; mean over steps
};

struct RunPlan {
  std::int64_t steps = 0;    ///< of the run, by its options; 0: no rows say
  std::int64_t planned = 0;  ///< steps that figures are means of
  std::int64_t parameters = 0, trained = 0;
  std::int64_t most_tokens = 0;  ///< of a micro-batch, of all that the rows can make
  std::int64_t most_scored = 0;  ///< tokens of a micro-batch that meet the output head
  std::vector<ActivationLevel> activations;
  HeadPlan head;  ///< of a micro-batch with `most_scored`
  MemoryPlan memory;
  StepWork work;  ///< of all planned steps and ranks
  std::vector<DealingPlan> dealing;
  double micro_batches = 0;  ///< of the rank with most, mean over steps
  std::vector<Collective> collectives;
  StepTime time;
  std::string tokenizer = {};   ///< that counted the rows' tokens; empty: their lengths were given
  double pairs_per_second = 0;  ///< of a rank
  double mfu = 0;               ///< 0: not known

  double mean(double sum) const { return sum / static_cast<double>(planned); }
};

/// The largest micro-batch that rows can make: tokens, and of those that meet the output head.
struct LargestMicroBatch {
  std::int64_t tokens = 0, scored = 0;
};
LargestMicroBatch largest_micro_batch(const RunRows& rows, const BatchOptions& batch);

/// Returns whether layers keep their inputs in a file (`machine.activation_folder`).
bool keeps_in_file(const MachineOptions& options, Checkpointing checkpointing);

/// Returns what a rank holds with a choice of checkpointing and a plan of the head for
/// micro-batches of up to that many tokens.
MemoryPlan memory_of(const RunOptions& options, const RunModels& models, const RunRows& rows,
                     const PlanAssumptions& machine, std::int64_t tokens,
                     Checkpointing checkpointing, const HeadPlan& head);

/// Returns the batch options of a rank: a micro-batch has at most an equal share of the rows.
BatchOptions batch_of_rank(BatchOptions batch, std::int64_t ranks);

/// Plans at most `most_steps` first steps on rows of the run. Throws ConfigError for a loss or an
/// option that a plan does not count.
RunPlan plan_run(const RunOptions& options, const RunRows& rows, const PlanAssumptions& machine,
                 std::int64_t most_steps);

/// Returns rows that are all alike, of as many tokens: as many as a step has.
std::vector<TokenRow> equal_rows(std::int64_t count, std::int64_t prompt, std::int64_t chosen,
                                 std::int64_t rejected);

}  // namespace prefopt::detail
