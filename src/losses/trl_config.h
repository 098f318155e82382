// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/json.h"

namespace prefopt::detail {

/// A loss as TRL 1.16 configures it, `loss_type` (a name or a list, with `loss_weights`) beside the
/// options of all losses, becomes our `{"type": …}`, a mix where there are several. Defaults are
/// TRL's there, and options that TRL does not read for a loss are left out. Any other config stays
/// as it is, but for names that are TRL's alone. Throws ConfigError.
void translate_trl(Json& config);

}  // namespace prefopt::detail
