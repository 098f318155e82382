// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/options.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

struct SamplingOptions {
  std::int64_t max_new_tokens = 64;
  double temperature = 1;  ///< 0: greedy
  std::int64_t top_k = 0;  ///< 0: off
  double top_p = 1;
  std::int64_t eos_id = -1;  ///< -1: no end token
  std::int64_t seed = 0;
  std::vector<std::int64_t> extra_eos_ids = {};  ///< further end tokens
  /// Index of the first prompt, so that a batch cut in parts draws the same: prompt i of a call
  /// draws with (seed, first_index + i). Not an option of a config; `fields` omits it.
  std::int64_t first_index = 0;

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Returns whether `token` ends a completion.
PREFOPT_API bool is_end_token(std::int64_t token, const SamplingOptions& options);

/// Returns completions in the order of the prompts, with the end token if it was drawn. A sample
/// depends on seed, prompt index and model, not on the thread count, and with a Decoder on the CPU
/// not on the other prompts either. Equal prompts cost as much as one, and a finished sequence
/// costs nothing more. No gradient is kept.
///
/// Throws ConfigError for an end token outside of the vocabulary, ShapeError for an empty prompt,
/// DataError for a prompt's token outside of the vocabulary, NonFiniteError for logits without a
/// distribution.
PREFOPT_API std::vector<std::vector<std::int64_t>> sample(
    Policy& policy, const std::vector<std::vector<std::int64_t>>& prompts,
    const SamplingOptions& options);

struct Samples {
  std::vector<std::vector<std::int64_t>> completions;
  /// Of each token of the completions, in nats.
  std::vector<std::vector<double>> token_logps;
};

/// Returns what `sample` does, and the log-probs of the drawn tokens under the policy itself: log
/// softmax of its logits at temperature 1 over the whole vocabulary, whatever the options drew
/// from. Losses need these; sequence_logps of the completions gives the same up to rounding.
PREFOPT_API Samples sample_with_logps(Policy& policy,
                                      const std::vector<std::vector<std::int64_t>>& prompts,
                                      const SamplingOptions& options);

/// Returns the probabilities after temperature, top-k and top-p: [S, vocab] float32. Exposed for
/// tests.
PREFOPT_API at::Tensor sampling_probabilities(const at::Tensor& logits,
                                              const SamplingOptions& options);

}  // namespace prefopt
