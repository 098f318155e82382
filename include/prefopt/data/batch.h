// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// One token pair. `rejected` is empty for rows that have a single completion (SFT).
struct TokenPair {
  std::vector<std::int64_t> prompt;
  std::vector<std::int64_t> chosen;
  std::vector<std::int64_t> rejected;
};

/// Right-padded sequences. `S` sequences of at most `T` tokens.
struct TokenBatch {
  at::Tensor input_ids;        ///< [S, T] int64; padding holds 0, which no result depends on
  at::Tensor attention_mask;   ///< [S, T] bool, true on real tokens
  at::Tensor completion_mask;  ///< [S, T] bool, true on completion tokens
  /// [S] int64 on the CPU, so that counts never need a device sync.
  at::Tensor completion_lens;

  std::int64_t sequences() const { return input_ids.size(0); }
  PREFOPT_API TokenBatch to(const at::Device& device) const;
};

/// One prompt and completion, as a view for batching.
struct TokenSequence {
  std::span<const std::int64_t> prompt;
  std::span<const std::int64_t> completion;
};

/// Throws ShapeError for an empty list, an empty prompt (nothing predicts the first token) or an
/// empty completion.
PREFOPT_API TokenBatch make_batch(const std::vector<TokenSequence>& sequences);

/// Chosen sequences of all pairs first, then the rejected ones (when `with_rejected`).
PREFOPT_API TokenBatch make_pair_batch(const std::vector<TokenPair>& pairs,
                                       bool with_rejected = true);

}  // namespace prefopt
