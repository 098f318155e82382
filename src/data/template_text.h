// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace prefopt::detail {

/// Returns one spelling for all chat templates (Jinja) that differ only in what means the same:
/// spaces within tags, quotes and escapes of text in them, `message.role` for `message['role']`, a
/// default for add_generation_prompt, white space at the end. Takes any bytes; not a check.
std::string canonical_template(std::string_view text);

}  // namespace prefopt::detail
