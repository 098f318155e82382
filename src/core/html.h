// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace prefopt::detail {

/// Escapes `text` for HTML or SVG, between tags or in a quoted attribute. Bad UTF-8 becomes U+FFFD;
/// control characters but tab and line feed become their pictures (␀), as a page may not hold them.
std::string escape_html(std::string_view text);

}  // namespace prefopt::detail
