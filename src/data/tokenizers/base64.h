// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace prefopt::detail {

/// Returns the bytes of a text in base64 (RFC 4648), or none if it is no such text.
std::optional<std::string> from_base64(std::string_view text);

std::string to_base64(std::string_view bytes);

}  // namespace prefopt::detail
