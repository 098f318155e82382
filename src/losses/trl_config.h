// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/json.h"

namespace prefopt::detail {

/// A loss as TRL 1.16 configures it, by `trainer` or `loss_type` (a name or a list, with
/// `loss_weights`) and the keys of losses/trl_tables.h, becomes our `{"type": …}`, a mix where
/// there are several. Without `trainer`, the names and keys decide whose config it is. Options of
/// ours may be among TRL's. Any other config stays as it is. Throws ConfigError for keys of two
/// trainers and for one, off its default, that TRL does not read for the loss.
void translate_trl(Json& config);

}  // namespace prefopt::detail
