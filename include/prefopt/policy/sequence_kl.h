// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include "prefopt/data/batch.h"
#include "prefopt/export.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

/// Returns [S] float64, nats: for each sequence the sum over its completion tokens of
///   KL(pi_ref || pi) = Σ_v pi_ref(v) (log pi_ref(v) − log pi(v))
/// over the vocabulary (TDPO, 2404.11999 eq. 12), with the batch's token_weights, if any, as
/// factors. Differentiable in the policy, whose logits have the gradient pi − pi_ref. Works on a
/// few rows of logits at a time and recomputes them in the backward pass; both models are run once
/// more for it. Throws ShapeError unless both have the same vocabulary.
PREFOPT_API at::Tensor sequence_kl(Policy& policy, Policy& reference, const TokenBatch& batch);

}  // namespace prefopt
