// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/network.h"
#include "prefopt/model/policy.h"

namespace prefopt::detail {

/// Decoding with keys and values of all tokens so far. Keeps handles of the network's weights.
std::unique_ptr<DecodeSession> make_cached_session(Network network,
                                                   std::vector<std::vector<std::int64_t>> prompts);

}  // namespace prefopt::detail
