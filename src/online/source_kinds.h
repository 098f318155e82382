// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/online/online_options.h"

namespace prefopt::detail {

/// Returns whether models of the run draw tokens for a source: whole completions, actions of an
/// environment or steps of a search.
bool draws_tokens(const SourceOptions& source);

}  // namespace prefopt::detail
