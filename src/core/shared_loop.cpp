// SPDX-License-Identifier: Apache-2.0
#include "core/shared_loop.h"

#include <algorithm>
#include <utility>

#include "core/processor.h"

namespace prefopt {
namespace {

thread_local bool is_at_part = false;

}  // namespace

bool is_in_shared_loop() { return is_at_part; }

ThreadState::ThreadState()
    : autograd_(c10::AutogradState::get_tls_state()),
      keys_(c10::impl::tls_local_dispatch_key_set()) {
  std::fegetenv(&floats_);
}

void ThreadState::apply() const {
  c10::AutogradState::set_tls_state(autograd_);
  c10::impl::_force_tls_local_dispatch_key_set(keys_);
  std::fesetenv(&floats_);
}

SharedLoop::SharedLoop(const ParallelLoop& loop)
    : loop_(loop), callers_processor_(this_processor()), next_(loop.begin) {}

void SharedLoop::work() {
  is_at_part = true;
  for (Part part = take(); part.first < part.last; part = take()) {
    try {
      loop_.part(part.first, part.last);
    } catch (...) {
      fail(part.first, std::current_exception());
    }
  }
  is_at_part = false;
}

// A third of a thread's share of what is left: few parts, and little that the last one holds up.
SharedLoop::Part SharedLoop::take() {
  constexpr std::int64_t kPartsOfShare = 3;
  std::int64_t first = next_, last = 0;
  do {
    const std::int64_t left = loop_.end - first;
    if (left <= 0) return {loop_.end, loop_.end};
    last = first + std::min(left, std::max(loop_.grain, left / (kPartsOfShare * loop_.threads)));
  } while (!next_.compare_exchange_weak(first, last));
  return {first, last};
}

// Parts before one that failed have begun, so that the first failure in order comes here too.
void SharedLoop::fail(std::int64_t first, std::exception_ptr failure) {
  const std::lock_guard lock(failing_);
  next_ = loop_.end;
  if (first >= failed_) return;
  failed_ = first;
  failure_ = std::move(failure);
}

void SharedLoop::rethrow() const {
  if (failure_) std::rethrow_exception(failure_);
}

bool SharedLoop::remove_helper() {
  // The last helper's leave may end the loop's life.
  const bool is_awaited = is_awaited_;
  return helpers_.fetch_sub(1, std::memory_order_acq_rel) == 1 && is_awaited;
}

}  // namespace prefopt
