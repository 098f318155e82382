// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace prefopt::detail {

/// A spelling that is the same for chat templates (Jinja) that differ only in what means the same:
/// spaces within tags, quotes and escapes of text in them, `message.role` for `message['role']`, a
/// default for add_generation_prompt, white space at the end. Not a check: any bytes are taken.
std::string canonical_template(std::string_view text);

}  // namespace prefopt::detail
