// SPDX-License-Identifier: Apache-2.0
#include "core/parallel.h"

#include <ATen/Parallel.h>

namespace prefopt {

void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain,
                  c10::function_ref<void(std::int64_t, std::int64_t)> f) {
  at::parallel_for(begin, end, grain, f);
}

std::int64_t thread_count() { return at::get_num_threads(); }

}  // namespace prefopt
