// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "prefopt/data/batch.h"
#include "prefopt/decoder/decoder.h"

namespace prefopt::detail {

/// Returns [tokens] float64: `score` [1, hidden] times the hidden state that predicts each
/// completion token that counts.
at::Tensor token_scores(Decoder& body, const at::Tensor& score, const TokenBatch& batch);

/// Returns a score head [1, hidden], N(0, initializer_range^2) from LibTorch's default generator.
at::Tensor fresh_score_head(const Decoder& body);

/// Returns where the weights of a reward model are: `path`, or what the folder of an adapter names.
/// Throws CheckpointError for an adapter that names nothing.
std::string path_of_weights(const std::string& path);

}  // namespace prefopt::detail
