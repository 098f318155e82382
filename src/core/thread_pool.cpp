// SPDX-License-Identifier: Apache-2.0
// LibTorch's OpenMP gives each thread one part and lets it spin until all others are done: a part
// whose processor is taken by another program holds up everybody, and those who wait take
// processors from it. Here a caller needs no helper to finish, and waiting threads sleep. What is
// left is a helper without a processor in the middle of a part: a caller that waits for one gives
// it its own. The system would let it wait for milliseconds, next to an idle processor.
#include "core/thread_pool.h"

#ifdef __unix__
#include <pthread.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): pthread_sigmask is POSIX
#endif

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <map>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/one_thread.h"
#include "core/processor.h"

namespace prefopt {
namespace {

using PoolClock = std::chrono::steady_clock;

// To fall asleep and to be woken takes tens of microseconds, so that a thread looks for as long at
// what it waits for. More would take a processor from those that have work.
constexpr auto kPatience = std::chrono::microseconds(50);

void relax_processor() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Returns whether a condition becomes true within kPatience.
template <class Condition>
bool comes_soon(const Condition& is_so) {
  constexpr int kLooks = 16;  // between two at the clock
  const auto end = PoolClock::now() + kPatience;
  do {
    for (int i = 0; i < kLooks; ++i) {
      if (is_so()) return true;
      relax_processor();
    }
  } while (PoolClock::now() < end);
  return false;
}

/// Lets threads that are started meanwhile have no signals: those are for the program's own.
class WithoutSignals {
 public:
#ifdef __unix__
  WithoutSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~WithoutSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  WithoutSignals(const WithoutSignals&) = delete;
  WithoutSignals& operator=(const WithoutSignals&) = delete;

 private:
  sigset_t before_;
#endif
};

class LoopPool {
 public:
  void run(const ParallelLoop& loop) {
    SharedLoop shared(loop);
    add(shared, std::min(loop.threads, (loop.end - loop.begin + loop.grain - 1) / loop.grain) - 1);
    {
      const OneThread one_thread;
      shared.work();
    }
    remove(shared);
    shared.rethrow();
  }

 private:
  using Lock = std::unique_lock<std::mutex>;

  struct Helper {
    WatchedThread thread;
    SharedLoop* loop = nullptr;  ///< that it works at
  };

  void add(SharedLoop& loop, std::int64_t helpers) {
    std::int64_t woken = 0;
    {
      const Lock lock(mutex_);
      start_threads(helpers);
      loops_.push_back(&loop);
      added_.fetch_add(1, std::memory_order_release);
      woken = std::min(helpers, sleepers_);
    }
    for (; woken > 0; --woken) wake_up_.notify_one();
  }

  /// A machine that starts no further thread leaves more parts to the others.
  void start_threads(std::int64_t wanted) {
    if (threads_ >= wanted) return;
    const WithoutSignals without_signals;
    try {
      for (; threads_ < wanted; ++threads_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  void remove(SharedLoop& loop) {
    {
      const Lock lock(mutex_);
      std::erase(loops_, &loop);
    }
    const auto is_left = [&] { return !loop.has_helpers(); };
    if (comes_soon(is_left)) return;
    constexpr auto kLookAgain = std::chrono::milliseconds(1);
    std::map<const Helper*, BroughtHere> brought;
    Lock lock(mutex_);
    loop.set_awaited();
    while (!is_left()) {
      for (const Helper* helper : without_processor(loop, lock)) {
        brought.try_emplace(helper, helper->thread);
      }
      left_.wait_for(lock, kLookAgain, is_left);
    }
  }

  /// Returns the helpers of a loop that wait for a processor: their time on one stands still.
  std::vector<const Helper*> without_processor(const SharedLoop& loop, Lock& lock) {
    std::vector<const Helper*> waiting;
    std::vector<std::int64_t> times;
    for (const Helper* helper : helpers_) {
      if (helper->loop != &loop) continue;
      waiting.push_back(helper);
      times.push_back(helper->thread.nanoseconds());
    }
    // A helper that is about to leave may not wait for this.
    lock.unlock();
    const bool are_gone = comes_soon([&] { return !loop.has_helpers(); });
    lock.lock();
    if (are_gone) return {};
    constexpr std::int64_t kStill = 5'000;  // ns, the time of looking apart
    std::vector<const Helper*> still;
    for (std::size_t i = 0; i < waiting.size(); ++i) {
      const std::int64_t time = waiting[i]->thread.nanoseconds();
      if (waiting[i]->loop == &loop && time > 0 && time - times[i] < kStill) {
        still.push_back(waiting[i]);
      }
    }
    return still;
  }

  /// A thread's life.
  [[noreturn]] void serve() {
    const OneThread one_thread;
    Helper self;
    Lock lock(mutex_);
    helpers_.push_back(&self);
    while (true) {
      self.loop = loop_to_help(lock);
      if (self.loop == nullptr) {
        wait_for_loop(lock);
        continue;
      }
      self.loop->add_helper();
      lock.unlock();
      self.loop->take_callers_state();
      self.loop->work();
      lock.lock();
      if (std::exchange(self.loop, nullptr)->remove_helper()) left_.notify_all();
    }
  }

  /// Returns a loop that has parts left, or null. A helper on the caller's processor would be in
  /// its way and goes to another one before, where another program may hold it up.
  SharedLoop* loop_to_help(Lock& lock) const {
    const auto find = [&] {
      const auto found = std::find_if(loops_.begin(), loops_.end(),
                                      [](const SharedLoop* loop) { return loop->wants_help(); });
      return found == loops_.end() ? nullptr : *found;
    };
    SharedLoop* const loop = find();
    if (loop == nullptr || loop->callers_processor() != this_processor()) return loop;
    const int processor = loop->callers_processor();
    lock.unlock();
    leave_processor(processor);
    lock.lock();
    return find();
  }

  void wait_for_loop(Lock& lock) {
    const std::int64_t seen = added_;
    const auto has_more = [&] { return added_ != seen; };
    lock.unlock();
    const bool is_soon = comes_soon(has_more);
    lock.lock();
    if (is_soon) return;
    ++sleepers_;
    wake_up_.wait(lock, has_more);
    --sleepers_;
  }

  std::mutex mutex_;
  std::condition_variable wake_up_, left_;
  std::vector<SharedLoop*> loops_;
  std::vector<Helper*> helpers_;
  std::atomic<std::int64_t> added_ = 0;
  std::int64_t threads_ = 0, sleepers_ = 0;
};

/// The pool, which is never destroyed, because its threads end with the process. They do not follow
/// fork(): a child begins with a new pool in the same place.
LoopPool& loop_pool() {
  alignas(LoopPool) static std::byte memory[sizeof(LoopPool)];
  static LoopPool* const pool = [] {
#ifdef __unix__
    pthread_atfork(nullptr, nullptr, [] { new (memory) LoopPool; });
#endif
    return new (memory) LoopPool;
  }();
  return *pool;
}

}  // namespace

void run_on_pool(const ParallelLoop& loop) { loop_pool().run(loop); }

}  // namespace prefopt
