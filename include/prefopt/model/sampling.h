// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/model/policy.h"
#include "prefopt/options.h"

namespace prefopt {

struct SamplingOptions {
  std::int64_t max_new_tokens = 64;
  double temperature = 1;  ///< 0: greedy
  std::int64_t top_k = 0;  ///< 0: off
  double top_p = 1;
  std::int64_t eos_id = -1;  ///< -1: no end token
  std::int64_t seed = 0;
  /// Index of the first prompt, so that a batch cut in parts draws the same: prompt i of a call
  /// draws with (seed, first_index + i). Not an option of a config; `fields` leaves it out.
  std::int64_t first_index = 0;

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Completions, the end token included where it was drawn; in the order of the prompts. A sample
/// depends on seed, prompt index and model, not on the thread count. No gradient is kept.
PREFOPT_API std::vector<std::vector<std::int64_t>> sample(
    Policy& policy, const std::vector<std::vector<std::int64_t>>& prompts,
    const SamplingOptions& options);

/// Probabilities after temperature, top-k and top-p: [S, vocab] float32. Exposed for tests.
PREFOPT_API at::Tensor sampling_probabilities(const at::Tensor& logits,
                                              const SamplingOptions& options);

}  // namespace prefopt
