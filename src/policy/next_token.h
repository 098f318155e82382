// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "prefopt/policy/sampling.h"

namespace prefopt::detail {

/// Returns the next token of each row of `logits` [S, vocab], float32 or float64, dense, on the
/// CPU; row i draws with shares[i]. Throws NonFiniteError for a row without a distribution.
std::vector<std::int64_t> draw_tokens(const at::Tensor& logits, const SamplingOptions& options,
                                      std::span<const double> shares);

/// Returns the probabilities that draw_tokens draws from: [S, vocab] float32.
at::Tensor token_probabilities(const at::Tensor& logits, const SamplingOptions& options);

}  // namespace prefopt::detail
