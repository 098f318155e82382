// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/online/feedback.h"

namespace prefopt::detail {

/// Throws ConfigError for a value out of its range, no source or several, and an option that the
/// source does not use.
void check_feedback(const FeedbackOptions& options);

}  // namespace prefopt::detail
