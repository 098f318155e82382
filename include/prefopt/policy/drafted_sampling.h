// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/policy/sampling.h"

namespace prefopt {

struct DraftCounts {
  std::int64_t drafted = 0, accepted = 0;  ///< tokens
  std::int64_t passes = 0;                 ///< of the model, the prompts' apart
};

/// Returns what `sample` returns for greedy options, with fewer passes of the model: where the last
/// tokens of a sequence occurred in it before, those that followed then, up to `draft_tokens`, are
/// tried at once, and as many are kept as the model would have said (prompt lookup; speculative
/// decoding 2211.17192 with a draft that has probability 1). The model of a token is the same to
/// the last bit, so the completions are. It pays for few sequences of text that repeats itself; a
/// pass has 32 rows at most, or one for each sequence if those are more.
///
/// Throws ConfigError for draft_tokens below 1, a temperature other than 0, a repetition_penalty or
/// min_new_tokens, and for a policy that decodes one token at a time: all but a Decoder on the CPU
/// without dynamic rotary scaling. Otherwise as `sample`.
PREFOPT_API std::vector<std::vector<std::int64_t>> sample_with_drafts(
    Policy& policy, const std::vector<std::vector<std::int64_t>>& prompts,
    const SamplingOptions& options, std::int64_t draft_tokens, DraftCounts* counts = nullptr);

}  // namespace prefopt
