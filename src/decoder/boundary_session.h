// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "prefopt/policy/policy.h"

namespace prefopt::detail {

/// Starts decoding of some prompts.
using StartSession = std::function<std::unique_ptr<DecodeSession>(
    const std::vector<std::vector<std::int64_t>>& prompts)>;

/// Decodes with a model whose rotary frequencies are others in sequences of more than `boundary`
/// tokens: where one grows beyond it, the state of all is computed again.
std::unique_ptr<DecodeSession> make_boundary_session(StartSession start,
                                                     std::vector<std::vector<std::int64_t>> prompts,
                                                     std::int64_t boundary);

}  // namespace prefopt::detail
