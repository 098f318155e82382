// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "decoder/network.h"
#include "prefopt/decoder/lora_options.h"

namespace prefopt::detail {

/// Returns options whose list of targets names the maps that the model has: one of fused queries,
/// keys and values where the list has all three, of gate and up where it has both, and no part of
/// feed-forward that is experts, which take no adapter, where the list is the default one. That
/// then fits every family.
LoraOptions named_as_in(const Network& network, LoraOptions options);

}  // namespace prefopt::detail
