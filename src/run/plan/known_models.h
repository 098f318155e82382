// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/decoder/decoder.h"

namespace prefopt::detail {

/// Returns the sizes of a published model by its name here, as in its config.json; nothing for
/// another name.
std::optional<DecoderOptions> known_model(std::string_view name);

std::vector<std::string> known_models();

}  // namespace prefopt::detail
