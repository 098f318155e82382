// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace prefopt {

/// Whose threads the loops of parallel.h run on.
enum class LoopThreads { kPool, kLibTorch };

/// Chooses for all later loops; the pool's are the default, LibTorch's are for comparison.
void set_loop_threads(LoopThreads threads);
LoopThreads loop_threads();

}  // namespace prefopt
