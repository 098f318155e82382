// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/export.h"

namespace prefopt {

/// Returns the library's unused buffers to the system. On a CPU, large buffers (logits and
/// gradients of the output head, packed layers) are kept for the next step instead of being freed.
PREFOPT_API void release_pooled_memory();

}  // namespace prefopt
