// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "core/json.h"

namespace prefopt::detail {

/// Returns whether a config has a key of another program's that replace_peer_names replaces.
bool has_peer_name(const Json& config);
/// Replaces keys of verl 0.9, OpenRLHF 0.11 and NeMo-RL by ours where one of ours means the same.
/// Throws ConfigError, led by `where`, for other keys of theirs and of TRL's, naming ours, for a
/// value that none of ours means, and for two keys of one meaning.
void replace_peer_names(Json& config, const std::string& where);

}  // namespace prefopt::detail
