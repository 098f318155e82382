// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "prefopt/data/batch.h"
#include "prefopt/export.h"
#include "prefopt/logps/token_logps.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

/// The way in which a sequence's token log-probs become one number: Σ_t w_t logp_t, or its mean Σ_t
/// w_t logp_t / n. The batch's token_weights, if any, are a further factor of w_t.
struct SequenceReduction {
  bool mean = false;
  /// LD-DPO (2409.06411): w_t = tail_weight for the tokens from overlap_lens on, else 1.
  double tail_weight = 1;
  at::Tensor overlap_lens;  ///< [S] int64; undefined: all tokens
};

struct SequenceLogpsOptions {
  ByProducts by_products;
  SequenceReduction reduction;
  /// Of linear_token_logps, for policies that give hidden states.
  std::int64_t budget_bytes = std::int64_t{1} << 30;
  HeadPath path = HeadPath::kAutomatic;
  /// > 0: log-probs and by-products are those of the policy's logits divided by it, as tokens were
  /// sampled. On top of a temperature of the policy's own head.
  double temperature = 1;
  DifferentiableByProducts differentiable = {};
};

/// Log-probs of the completions of a batch. Prompt and padding positions never reach the output
/// head of a policy that gives hidden states.
struct SequenceLogps {
  at::Tensor logps;            ///< [S] float64: reduced over completion tokens, nats
  at::Tensor lens;             ///< [S] int64: completion token counts
  at::Tensor token_logps;      ///< [rows] one per completion token, sequence after sequence
  at::Tensor row_to_sequence;  ///< [rows] int64
  at::Tensor token_weights;    ///< [rows] float64, the batch's; undefined: 1 each
  TokenByProducts by_products;
};

/// Returns one number per sequence from values of its completion tokens, in the layout of
/// `sequences`: sums in float64, with the weights of `reduction` and of the batch.
PREFOPT_API at::Tensor reduce_tokens(const at::Tensor& token_values, const SequenceLogps& sequences,
                                     const SequenceReduction& reduction = {});

/// Scores the completions of a batch. Keeps the graph unless grad mode is off. Throws what
/// token_logps and linear_token_logps throw, and ConfigError for a temperature that is not > 0.
PREFOPT_API SequenceLogps sequence_logps(Policy& policy, const TokenBatch& batch,
                                         const SequenceLogpsOptions& options = {});

}  // namespace prefopt
