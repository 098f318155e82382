// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"

namespace prefopt {

/// Returns the place after the last token of each step of a completion: a step ends with the token
/// that makes the text since the step before hold `step_end`, as a completion does with a stop
/// string, and the last one at the end of the completion. Text is what the tokenizer decodes,
/// without special tokens. An end token that follows the last `step_end` belongs to the step
/// before it. Throws ConfigError for an empty `step_end`.
PREFOPT_API std::vector<std::int64_t> find_step_ends(const std::vector<std::int64_t>& completion,
                                                     const Tokenizer& tokenizer,
                                                     std::string_view step_end);

}  // namespace prefopt
