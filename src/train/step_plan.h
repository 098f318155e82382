// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "decoder/router_load.h"
#include "prefopt/data/batch.h"
#include "prefopt/dist/ranks.h"
#include "prefopt/losses/loss.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/train/trainer.h"

namespace prefopt::detail {

/// Rows and tokens, known before any forward pass: of the completions, the tokens that count.
struct StepCounts {
  std::int64_t rows = 0;
  std::int64_t desirable_rows = 0;  ///< with the label 1
  std::int64_t prompt = 0;
  std::int64_t predicted_prompt = 0;  ///< without the first token, which nothing predicts
  std::int64_t chosen = 0;
  std::int64_t rejected = 0;
  std::int64_t gold = 0;
  std::int64_t all_chosen = 0, all_rejected = 0, all_gold = 0;  ///< with those that do not count
  std::int64_t desirable = 0;  ///< of `chosen`, those of desirable rows
};

StepCounts count(const std::vector<TokenRow>& rows);

/// A micro-batch: some rows of a step.
struct Part {
  std::vector<TokenRow> rows;
  /// Of each row, the place in StepPlan::rows of the row whose completion a KL is estimated on
  /// under its prompt; empty where none is.
  std::vector<std::size_t> partners;
  /// Of each row, the place in StepPlan::rows of the first row of its prompt; empty where no loss
  /// asks.
  std::vector<std::size_t> groups;
  std::int64_t place;  ///< of the first row in the step
  std::int64_t
      number;  ///< of the first row, for fresh samples: in an evaluation, among all its rows
  StepCounts counts;

  /// The routers' choices for its rows, in the last pass over them; of routed experts whose loss is
  /// added.
  RouterLoad routes = {};

  // Kept for the second pass of a loss that sees the whole step.
  std::optional<TokenBatch> samples = {};
  at::Tensor reference_token_logps = {};

  /// Drops them.
  void release() {
    samples.reset();
    reference_token_logps.reset();
  }
};

/// The rank that takes a part of a step, and the part's rows.
struct Share {
  int rank;
  std::int64_t place;  ///< of the first row in the step
  std::int64_t rows;
};

/// A step of training, or a part of an evaluation, with its micro-batches. All ranks know all rows;
/// each takes some of the parts.
struct StepPlan {
  bool trains = true;
  std::int64_t step = 0;                        ///< for the seeds of fresh samples
  double share = 1;                             ///< of the rows of an evaluation
  std::vector<TokenRow> rows;                   ///< of all ranks, as they were given
  std::vector<Share> shares;                    ///< of all parts, in the order of the step
  std::vector<Part> parts;                      ///< that this rank takes, in the same order
  double imbalance = 1;                         ///< of what ranks take, see imbalance_of
  StepCounts counts;                            ///< of all rows
  StepTotals totals;                            ///< the same for a loss
  ObjectiveTotals rollouts;                     ///< the same for an objective on tokens
  std::map<std::int64_t, double> group_tokens;  ///< of its groups
  double imitated_tokens = 0;                   ///< of rows that are imitated
};

/// Returns how many parts the rank with most of them takes.
std::int64_t most_parts(const StepPlan& plan, const Ranks& ranks);

/// Cuts a step that several ranks take into parts that none of them waits for: at least one each
/// where there are rows enough. In the order of a tree the cut is that of one process.
TrainerOptions limits_for(const TrainerOptions& options, std::size_t rows, const Ranks& ranks);

/// Says who takes which of all parts in plan.parts, and leaves this rank's there.
void deal_parts(StepPlan& plan, const Ranks& ranks);

/// All evaluations draw the same samples, so that they differ by the policy alone.
inline constexpr std::int64_t kEvaluation = -1;

/// A maker of plans from rows.
struct Planner {
  const LossRequirements& needs;
  const TrainerOptions& options;
  bool pads;  ///< whether the policy takes padded rows, which are then sorted by length
  const Ranks& ranks;

  StepPlan plan_step(const std::vector<TokenRow>& rows, std::int64_t step) const;
  /// Makes plans of `evaluation_batch_size` rows for a loss that sees whole steps, else one of all.
  std::vector<StepPlan> plan_evaluation(const std::vector<TokenRow>& rows) const;

 private:
  StepPlan plan(std::vector<TokenRow> rows, std::int64_t first_number) const;
};

/// Returns rows cut so that no part exceeds the limits of the options, except for a single row.
std::vector<std::vector<TokenRow>> cut_micro_batches(const std::vector<TokenRow>& rows,
                                                     const TrainerOptions& options);

}  // namespace prefopt::detail
