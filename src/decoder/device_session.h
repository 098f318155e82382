// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "decoder/network.h"
#include "prefopt/policy/policy.h"

namespace prefopt::detail {

/// Decoding by LibTorch's operators on any device, with keys and values kept there. Prompts that
/// are equal are computed once. Logits are in at least float32. Takes checked prompts.
std::unique_ptr<DecodeSession> make_device_session(
    const Network& network, const std::vector<std::vector<std::int64_t>>& prompts);

}  // namespace prefopt::detail
