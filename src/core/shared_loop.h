// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/AutogradState.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/FunctionRef.h>

#include <atomic>
#include <cfenv>
#include <cstdint>
#include <exception>
#include <limits>
#include <mutex>

namespace prefopt {

/// A loop over [begin, end), cut into parts of at least `grain`.
struct ParallelLoop {
  std::int64_t begin, end, grain;
  std::int64_t threads;  ///< at most so many, with the caller's
  c10::function_ref<void(std::int64_t first, std::int64_t last)> part;
};

/// Returns whether the calling thread is at a part of a loop.
bool is_in_shared_loop();

/// Thread-local state besides arguments that a part computes with.
class ThreadState {
 public:
  ThreadState();
  void apply() const;

 private:
  c10::AutogradState autograd_;
  c10::impl::LocalDispatchKeySet keys_;
  std::fenv_t floats_{};
};

/// A loop that its caller and helpers work at. Helpers come and go under the lock of a pool.
class SharedLoop {
 public:
  explicit SharedLoop(const ParallelLoop& loop);

  /// Runs parts until none is left.
  void work();
  /// Throws what the first part that failed has thrown.
  void rethrow() const;

  int callers_processor() const { return callers_processor_; }
  void take_callers_state() const { state_.apply(); }
  bool wants_help() const { return helpers_ < loop_.threads - 1 && next_ < loop_.end; }
  bool has_helpers() const { return helpers_.load(std::memory_order_acquire) > 0; }
  void add_helper() { ++helpers_; }
  /// Returns whether the caller sleeps until this last helper is gone; it may wake up before.
  bool remove_helper();
  void set_awaited() { is_awaited_ = true; }

 private:
  struct Part {
    std::int64_t first, last;
  };

  Part take();
  void fail(std::int64_t first, std::exception_ptr failure);

  const ParallelLoop& loop_;
  const ThreadState state_;
  const int callers_processor_;
  std::atomic<std::int64_t> next_;
  std::atomic<std::int64_t> helpers_ = 0;
  bool is_awaited_ = false;
  std::mutex failing_;
  std::int64_t failed_ = std::numeric_limits<std::int64_t>::max();
  std::exception_ptr failure_;
};

}  // namespace prefopt
