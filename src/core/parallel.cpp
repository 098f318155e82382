// SPDX-License-Identifier: Apache-2.0
#include "core/parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "core/loop_threads.h"
#include "core/one_thread.h"
#include "core/thread_pool.h"

namespace prefopt {
namespace {

std::atomic<LoopThreads> chosen_threads = LoopThreads::kPool;

}  // namespace

void set_loop_threads(LoopThreads threads) { chosen_threads = threads; }
LoopThreads loop_threads() { return chosen_threads; }

void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain,
                  c10::function_ref<void(std::int64_t, std::int64_t)> f) {
  if (begin >= end) return;
  if (loop_threads() == LoopThreads::kLibTorch) return at::parallel_for(begin, end, grain, f);
  grain = std::max<std::int64_t>(grain, 1);
  const std::int64_t threads = thread_count();
  if (end - begin <= grain || threads == 1 || is_in_shared_loop() || at::in_parallel_region()) {
    return f(begin, end);
  }
  run_on_pool({begin, end, grain, threads, f});
}

std::int64_t thread_count() { return OneThread::threads_otherwise(); }

}  // namespace prefopt
