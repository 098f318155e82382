// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/json.h"
#include "core/text.h"
#include "prefopt/error.h"
#include "prefopt/policy/sampling.h"

namespace prefopt::detail {

/// Returns the options that draw a step of a completion instead of all of it. Throws ConfigError,
/// led by `where`, for options that are of whole completions.
inline SamplingOptions step_sampling(SamplingOptions whole, const std::string& step_end,
                                     std::int64_t step_tokens, std::string_view where) {
  if (whole.min_new_tokens > 0) {
    throw ConfigError(fmt::format("{}: expected no min_new_tokens, as steps are drawn, got {}",
                                  where, whole.min_new_tokens));
  }
  if (contains(whole.stop, step_end)) {
    throw ConfigError(
        fmt::format("{}: expected a step_end that is no text of stop, got '{}'; it would end "
                    "every completion at its first step",
                    where, shown_text(step_end)));
  }
  whole.max_new_tokens = std::min(whole.max_new_tokens, step_tokens);
  if (!step_end.empty()) whole.stop.push_back(step_end);
  return whole;
}

}  // namespace prefopt::detail
