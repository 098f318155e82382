// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "prefopt/losses/registry.h"

namespace prefopt::detail {

/// The losses that come with the library, in the order of the documentation.
void for_each_builtin_loss(const std::function<void(LossEntry)>& add);

}  // namespace prefopt::detail
