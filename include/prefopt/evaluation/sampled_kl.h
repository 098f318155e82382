// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "prefopt/evaluation/statistics.h"
#include "prefopt/export.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/sampling.h"

namespace prefopt {

struct SampledKl {
  Estimate kl;  ///< nats per completion; bootstrap over the prompts
  std::int64_t samples = 0;
  std::int64_t unfinished = 0;  ///< samples without an end token within max_new_tokens
  double mean_length = 0;       ///< tokens
  /// Of each prompt, one after the other.
  std::vector<std::vector<std::int64_t>> completions;
};

/// Estimates KL(pi || pi_ref) of completions of up to max_new_tokens tokens, by fresh samples of
/// the policy: the mean of Σ_t KL(pi(·|x, y_<t) || pi_ref(·|x, y_<t)) over y ~ pi. Each summand is
/// exact over the vocabulary, so the estimate is unbiased, never negative, and varies less than the
/// mean of log pi(y) − log pi_ref(y) (2504.10637). `prompts` should differ from each other.
///
/// Samples follow the policy's own distribution: throws ConfigError for a temperature other than 1,
/// top_k, top_p or fewer than one sample per prompt, DataError for no prompts, ShapeError if the
/// vocabularies differ, and what `sample` throws.
PREFOPT_API SampledKl sampled_kl(Policy& policy, Policy& reference,
                                 const std::vector<std::vector<std::int64_t>>& prompts,
                                 std::int64_t samples_per_prompt, const SamplingOptions& sampling);

}  // namespace prefopt
