// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/online/rollout.h"

namespace prefopt {

/// Writes rollouts as JSONL, one object a line, in place of a file that is there. Numbers are read
/// back to the last bit; a reward that is NaN is null. Throws DataError if it cannot be written.
///
/// | key | of Rollout | if absent |
/// | --- | --- | --- |
/// | `prompt_ids`, `completion_ids` | `prompt`, `completion` | an error |
/// | `prompt`, `text` | `prompt_text`, `text` | empty |
/// | `token_logps`, `token_rewards` | the same, a number a token | empty |
/// | `acted` | the same, 0 or 1 a token | empty |
/// | `turn_ends` | the same, ascending, the last one the number of tokens | empty |
/// | `rewards` | the same, numbers or null | empty |
/// | `ended` | the same | false |
/// | `group`, `source` | the same | 0 |
PREFOPT_API void save_rollouts(const std::vector<Rollout>& rollouts, const std::string& path);

/// Returns the rollouts of such a file, which may be gzip'ed. Throws DataError, led by file and
/// line, for a line that is no such object, an unknown key, and lists whose lengths differ from the
/// number of tokens; and for a file without rollouts.
PREFOPT_API std::vector<Rollout> load_rollouts(const std::string& path);

}  // namespace prefopt
