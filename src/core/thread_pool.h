// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/shared_loop.h"

namespace prefopt {

/// Runs a loop on the caller's thread and on those of the process's pool, on a machine whose
/// processors may be busy with other work. Parts are handed out in order, smaller ones towards the
/// end, to whoever is free; the caller works like the rest and waits for begun parts only. Whoever
/// waits sleeps after some microseconds.
///
/// A part sees the caller's autograd mode, dispatch keys and floating-point environment, and
/// LibTorch's operators in it keep to its thread. Where parts throw, no further ones begin, and the
/// exception of the first of them in order is thrown. Several threads may run loops at once; a loop
/// within a part is the caller's to run. A child process after fork() has a pool of new threads.
void run_on_pool(const ParallelLoop& loop);

}  // namespace prefopt
