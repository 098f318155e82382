// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/policy/policy.h"

// Policies that are weighted sums of other ones' logits.
namespace prefopt::detail {

/// Returns the logits [S, T, vocab] of a batch, also of a policy that gives hidden states.
at::Tensor all_logits(Policy& policy, const TokenBatch& batch);

/// Returns Σ_k weights[k] logits[k] on the first one's device, in at least float32. A token that
/// one of them rules out (−inf) stays ruled out.
at::Tensor summed_logits(const std::vector<at::Tensor>& logits, const std::vector<double>& weights);

/// Returns a session whose logits are the weighted sum of those of several.
std::unique_ptr<DecodeSession> summed_session(std::vector<std::unique_ptr<DecodeSession>> sessions,
                                              std::vector<double> weights);

}  // namespace prefopt::detail
