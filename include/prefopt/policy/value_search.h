// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/reward_policy.h"
#include "prefopt/policy/sampling.h"

namespace prefopt {

struct ValueSearchOptions {
  std::int64_t beams = 5;         ///< kept after each step, and drawn from each of them
  std::string step_end = "\n\n";  ///< text that ends a step
  SamplingOptions sampling = {};  ///< max_new_tokens of the whole completion, no stop strings
};

struct ValuedCompletion {
  std::vector<std::int64_t> completion;
  double value = 0;    ///< of the state before its end token, or after its last one
  bool ended = false;  ///< with an end token
};

/// Searches for the completion of a prompt of the largest value, step by step (test-time beam
/// search of OREO, 2412.16145 section 4.3): each beam is continued by `beams` sampled steps, and
/// the `beams` of largest value among these and those that have ended are kept, equal ones once,
/// until all have ended or have max_new_tokens. Returns them, the largest value first.
///
/// Values are of states: after a step, and of a completion that has ended before its end token, as
/// the state after that has no token to be trained by. `place` and the options' seed decide the
/// draws. With one beam it is `sample`'s distribution, step by step. Throws ConfigError for less
/// than one beam, no step_end, stop strings or no tokenizer, and what `sample` throws.
PREFOPT_API std::vector<ValuedCompletion> search_by_values(Policy& policy, RewardPolicy& values,
                                                           const std::vector<std::int64_t>& prompt,
                                                           const ValueSearchOptions& options,
                                                           std::int64_t place = 0);

}  // namespace prefopt
