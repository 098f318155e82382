// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/options.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

class Tokenizer;

/// `repetition_penalty` and `min_new_tokens` change the logits in that order, before temperature,
/// top-k and top-p, as transformers 5 does.
struct SamplingOptions {
  std::int64_t max_new_tokens = 64;
  double temperature = 1;  ///< 0: greedy
  std::int64_t top_k = 0;  ///< 0: off
  double top_p = 1;
  std::int64_t eos_id = -1;  ///< -1: no end token
  std::int64_t seed = 0;
  std::vector<std::int64_t> extra_eos_ids = {};  ///< further end tokens
  /// End tokens cannot be drawn before as many tokens; a stop string ends a completion all the
  /// same. At most max_new_tokens.
  std::int64_t min_new_tokens = 0;
  /// Of each token that prompt or completion hold already, however often: a positive logit is
  /// divided by it, another one multiplied (CTRL, 1909.05858, with the sign of transformers).
  double repetition_penalty = 1;
  /// A completion ends with the token that makes its text hold one of these. The text is that of
  /// the completion alone, as the tokenizer decodes it, without special tokens.
  std::vector<std::string> stop = {};
  /// For `stop`. Not an option of a config; `fields` omits it.
  std::shared_ptr<const Tokenizer> tokenizer = {};
  /// Index of the first prompt, so that a batch cut in parts draws the same: prompt i of a call
  /// draws with (seed, first_index + i). Not an option of a config; `fields` omits it.
  std::int64_t first_index = 0;
  /// In place of first_index + i, the index of each prompt; empty: off. Likewise no option.
  std::vector<std::int64_t> indices = {};

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Returns whether `token` ends a completion.
PREFOPT_API bool is_end_token(std::int64_t token, const SamplingOptions& options);

/// Returns whether the completion is finished: its last token is an end token, or its text holds a
/// stop string.
PREFOPT_API bool has_ended(const std::vector<std::int64_t>& completion,
                           const SamplingOptions& options);

/// Returns whether each token is drawn from the policy's own distribution: temperature 1, and no
/// option that keeps tokens back or changes logits. Stop strings and max_new_tokens say how long a
/// completion is, not which tokens it has.
PREFOPT_API bool follows_policy(const SamplingOptions& options);

/// Returns completions in the order of the prompts, with the end token if it was drawn. A sample
/// depends on seed, prompt index and model, not on the thread count, and with a Decoder on the CPU
/// not on the other prompts either. Equal prompts cost as much as one, and a finished sequence
/// costs nothing more. No gradient is kept.
///
/// Throws ConfigError for an end token outside of the vocabulary, min_new_tokens without an end
/// token, and stop strings without a tokenizer or that it never shows; ShapeError for an empty
/// prompt or another number of indices than prompts, DataError for a prompt's token outside of the
/// vocabulary, NonFiniteError for logits without a distribution.
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
