// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/FunctionRef.h>

#include <cstdint>

namespace prefopt {

/// Calls f(first, last) for parts of [begin, end) of at least `grain` but for the last one, on the
/// caller's thread and as many of a pool as LibTorch has besides. See thread_pool.h for order,
/// exceptions and what a part sees.
void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain,
                  c10::function_ref<void(std::int64_t, std::int64_t)> f);

/// Returns the number of LibTorch's threads.
std::int64_t thread_count();

}  // namespace prefopt
