// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "prefopt/data/batch.h"
#include "prefopt/export.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

/// The model that a KL takes its expectation under.
enum class KlDirection {
  kUnderReference,  ///< KL(pi_ref || pi) = Σ_v pi_ref(v) (log pi_ref(v) − log pi(v))
  kUnderPolicy,     ///< KL(pi || pi_ref) = Σ_v pi(v) (log pi(v) − log pi_ref(v))
};

struct TokenKlOptions {
  KlDirection direction = KlDirection::kUnderPolicy;
  /// > 0: both models' logits are divided by it, see SequenceLogpsOptions.
  double temperature = 1;
  /// Memory for logits of both models, and what is made of them.
  std::int64_t budget_bytes = std::int64_t{1} << 28;
};

/// Returns [rows] nats, one for each completion token in the order of SequenceLogps::token_logps,
/// without weights: the KL between the two models' distributions in its place, exactly, over the
/// vocabulary. float64 behind the logits; float32 unless the policy is float64, rounded once.
///
/// Differentiable in the policy, first-order. Gradient of a row's logits, with p of the policy and
/// r of the reference: p − r under the reference, p (log p − log r − KL) under the policy. A token
/// that the first of the two never says adds 0; one that only the second never says makes the KL
/// infinite.
///
/// Logits are made for a few rows at a time and again in the backward pass. In GEMMs of 2 · rows ·
/// H · vocab flops: one with each model's head in either pass, and in the backward pass one for
/// each of hidden and weight that needs a gradient. Both models are run once more for it.
///
/// Throws ShapeError unless both have the same vocabulary; ConfigError for a temperature that is
/// not > 0 or a budget below one row.
PREFOPT_API at::Tensor token_kl(Policy& policy, Policy& reference, const TokenBatch& batch,
                                const TokenKlOptions& options = {});

/// Returns [S] float64, nats: for each sequence the sum over its completion tokens of
///   KL(pi_ref || pi) = Σ_v pi_ref(v) (log pi_ref(v) − log pi(v))
/// over the vocabulary (TDPO, 2404.11999 eq. 12), with the batch's token_weights, if any, as
/// factors: the float64 sums of token_kl under the reference, with its costs and errors.
PREFOPT_API at::Tensor sequence_kl(Policy& policy, Policy& reference, const TokenBatch& batch);

}  // namespace prefopt
