// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/losses/loss.h"
#include "prefopt/policy/sequence_logps.h"
#include "train/metrics.h"
#include "train/step_plan.h"

// The metrics of rows and losses, under TRL's names.
namespace prefopt::detail {

/// Entropy over all completion tokens, accuracy over those of the chosen: TRL's definitions.
void add_token_metrics(const SequenceLogps& current, const StepCounts& counts, bool with_rejected,
                       StepMetrics& metrics);
/// The same of unpaired rows, of which the desirable ones count as chosen.
void add_label_token_metrics(const SequenceLogps& current, const at::Tensor& labels,
                             const StepCounts& counts, StepMetrics& metrics);

/// Rewards and log-probs of rows, and the loss with its terms, which counts as `share` of the
/// metrics'.
void add_loss_metrics(const PairLogps& logps, const LossOutput& out, const LossRequirements& needs,
                      const StepCounts& counts, double share, StepMetrics& metrics);

/// Mean numbers of tokens of the completions.
void add_lengths(const LossRequirements& needs, const StepCounts& counts, StepMetrics& metrics);

/// Returns the tokens that a forward pass over these rows takes.
std::int64_t tokens_taken(const LossRequirements& needs, const StepCounts& counts);

}  // namespace prefopt::detail
