// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "data/tokenizers/spec.h"

namespace prefopt::detail {

/// Returns a key of everything that decides which tokens a text gets.
std::string fingerprint_of(const TokenizerSpec& spec);

}  // namespace prefopt::detail
