// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "prefopt/export.h"

namespace prefopt {

/// Since the process began.
struct PromptCacheCounts {
  std::int64_t hits = 0;    ///< prompts that did not go through a model again
  std::int64_t misses = 0;  ///< prompts that did, while the cache was on
  std::int64_t bytes = 0;   ///< that are kept now
};

/// Lets decoders on the CPU keep up to `bytes` of keys, values and logits of prompts from one call
/// of `sample` to the next; 0, the default, keeps none and frees what is kept. The prompts that
/// were not used for the longest time make room for others. Results are the same to the last bit.
///
/// A kept prompt belongs to the weights and the adapter as they are, by the version counters of
/// their tensors: operators that write to a tensor move its counter, and prefopt's optimizers do. A
/// program that writes through a raw pointer or by LibTorch's fused optimizers, which move none,
/// calls the tensor's bump_version, or leaves the cache off.
PREFOPT_API void set_prompt_cache(std::int64_t bytes);

PREFOPT_API PromptCacheCounts prompt_cache_counts();

}  // namespace prefopt
