// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "data/conversation.h"

namespace prefopt::detail {

/// Returns the texts of a row that the rules' template renders, added to `row`: the prompt, with
/// the opening of the answer, and each completion up to the end of its last turn. The prompt's text
/// has to begin that of the whole conversation. Throws LineError where it does not, which shows
/// where they part, and for a message that the template leaves out. `continues`: the completions
/// continue the last turn of the prompt.
PreferenceRow rendered_row(const Conversation& talk, bool continues, const ConversationRules& rules,
                           PreferenceRow row);

}  // namespace prefopt::detail
