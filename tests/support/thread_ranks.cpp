// SPDX-License-Identifier: Apache-2.0
#include "support/thread_ranks.h"

#include <ATen/Parallel.h>
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): setenv is POSIX, not in <cstdlib>

#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <utility>

#include "dist/c10d_ranks.h"

namespace prefopt::testing_support {
namespace {

/// Calls `work` with 0, …, size − 1, each in a thread; returns what they threw.
std::vector<std::exception_ptr> on_threads(int size, const std::function<void(int)>& work) {
  std::vector<std::exception_ptr> thrown(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      at::set_num_threads(1);
      try {
        work(rank);
      } catch (...) {
        thrown[static_cast<std::size_t>(rank)] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return thrown;
}

void rethrow_first(const std::vector<std::exception_ptr>& thrown) {
  for (const std::exception_ptr& one : thrown) {
    if (one) std::rethrow_exception(one);
  }
}

}  // namespace

ThreadRanks::ThreadRanks(int size, RanksOptions options) : ranks_(static_cast<std::size_t>(size)) {
  options.timeout_seconds = 20;
  // c10d's record of collectives is one for the process, and its groups are noted without a lock.
  ::setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/1);
  if (size == 1) {
    ranks_.front() = one_process(options);
    return;
  }
  const auto store = c10::make_intrusive<c10d::HashStore>();
  rethrow_first(on_threads(size, [&](int rank) {
    Launch launch;
    launch.rank = launch.local_rank = rank;
    launch.size = launch.local_size = size;
    ranks_[static_cast<std::size_t>(rank)] = detail::make_ranks(store, launch, options);
  }));
}

std::vector<std::exception_ptr> ThreadRanks::troubles(const Work& work) const {
  return on_threads(static_cast<int>(ranks_.size()),
                    [&](int rank) { work(ranks_[static_cast<std::size_t>(rank)]); });
}

void ThreadRanks::run(const Work& work) const { rethrow_first(troubles(work)); }

}  // namespace prefopt::testing_support
