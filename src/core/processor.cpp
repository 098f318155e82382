// SPDX-License-Identifier: Apache-2.0
#include "core/processor.h"

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>  // NOLINT(modernize-deprecated-headers): clock_gettime is POSIX
#include <unistd.h>
#endif

namespace prefopt {

#ifdef __linux__

namespace {

constexpr std::int64_t kNanosecondsOfSecond = 1'000'000'000;

/// Returns whether the system said so; it does not for machines of more processors than a set has.
bool read_processors(std::int64_t thread, cpu_set_t& processors) {
  return ::sched_getaffinity(static_cast<pid_t>(thread), sizeof processors, &processors) == 0;
}

bool set_processors(std::int64_t thread, const cpu_set_t& processors) {
  return ::sched_setaffinity(static_cast<pid_t>(thread), sizeof processors, &processors) == 0;
}

}  // namespace

int this_processor() { return ::sched_getcpu(); }

void leave_processor(int processor) {
  constexpr std::int64_t kCaller = 0;
  cpu_set_t all;
  if (processor < 0 || !read_processors(kCaller, all)) return;
  cpu_set_t others = all;
  CPU_CLR(static_cast<std::size_t>(processor), &others);
  if (CPU_COUNT(&others) > 0 && set_processors(kCaller, others)) set_processors(kCaller, all);
}

WatchedThread::WatchedThread() : id_(::syscall(SYS_gettid)) {
  clockid_t clock = 0;
  if (::pthread_getcpuclockid(::pthread_self(), &clock) == 0) clock_ = clock;
}

std::int64_t WatchedThread::nanoseconds() const {
  timespec time{};
  if (clock_ == 0 || ::clock_gettime(static_cast<clockid_t>(clock_), &time) != 0) return 0;
  return time.tv_sec * kNanosecondsOfSecond + time.tv_nsec;
}

struct BroughtHere::Stay {
  std::int64_t thread;
  cpu_set_t before;
};

BroughtHere::BroughtHere(const WatchedThread& thread) {
  const int processor = this_processor();
  Stay stay{thread.id(), {}};
  if (processor < 0 || !read_processors(thread.id(), stay.before)) return;
  cpu_set_t here;
  CPU_ZERO(&here);
  CPU_SET(static_cast<std::size_t>(processor), &here);
  if (set_processors(thread.id(), here)) stay_ = std::make_unique<Stay>(stay);
}

BroughtHere::~BroughtHere() {
  if (stay_) set_processors(stay_->thread, stay_->before);
}

#else

int this_processor() { return -1; }
void leave_processor(int /*processor*/) {}

WatchedThread::WatchedThread() = default;
std::int64_t WatchedThread::nanoseconds() const { return 0; }

struct BroughtHere::Stay {};
BroughtHere::BroughtHere(const WatchedThread& /*thread*/) {}
BroughtHere::~BroughtHere() = default;

#endif

BroughtHere::BroughtHere(BroughtHere&&) noexcept = default;

}  // namespace prefopt
