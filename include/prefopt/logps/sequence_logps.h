// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include "prefopt/data/batch.h"
#include "prefopt/export.h"
#include "prefopt/logps/token_logps.h"
#include "prefopt/model/policy.h"

namespace prefopt {

/// Log-probs of the completions of a batch. Prompt and padding rows never reach the output head.
struct SequenceLogps {
  at::Tensor logps;            ///< [S] float64: sums over completion tokens, nats
  at::Tensor lens;             ///< [S] int64: completion token counts
  at::Tensor token_logps;      ///< [rows] one a completion token, sequence after sequence
  at::Tensor row_to_sequence;  ///< [rows] int64
  TokenByProducts by_products;
};

/// Keeps the graph unless grad mode is off.
PREFOPT_API SequenceLogps sequence_logps(Policy& policy, const TokenBatch& batch,
                                         bool by_products = false);

}  // namespace prefopt
