// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "decoder/network.h"
#include "prefopt/policy/policy.h"

namespace prefopt::detail {

/// Decoding on the CPU with keys and values of all tokens so far, without padding: prompts that are
/// equal are computed and kept once, and sequences that were let go cost nothing. Activations are
/// at least float32. Logits of a sequence do not depend on the others, bit for bit. Keeps handles
/// of the network's weights. `rows_at_once`: rows of prompts that go through the layers together, a
/// longer prompt part by part, without effect on results; 0: as many as take 256 MiB.
std::unique_ptr<DecodeSession> make_packed_session(
    const Network& network, const std::vector<std::vector<std::int64_t>>& prompts,
    std::int64_t rows_at_once = 0);

}  // namespace prefopt::detail
