// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "prefopt/logps/token_logps.h"

namespace prefopt {

/// Vocabulary rows that one thread takes at once; tiles are made of whole blocks. Their weights and
/// the logits of a few hundred tokens fit a second-level cache.
inline constexpr std::int64_t kBlockVocab = 96;

/// Returns the path to take, or ConfigError where the gradients that are needed do not allow the
/// wanted one.
HeadPath checked_path(const HeadWork& work, HeadPath wanted);

}  // namespace prefopt
