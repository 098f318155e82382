// SPDX-License-Identifier: Apache-2.0
#include "core/processor.h"

#ifdef __linux__

#include <ATen/Parallel.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/parallel.h"
#include "support/catch.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;

/// The processors that a thread may run on; 0: the calling one.
std::vector<int> processors_of(std::int64_t thread) {
  cpu_set_t set;
  REQUIRE(::sched_getaffinity(static_cast<pid_t>(thread), sizeof set, &set) == 0);
  std::vector<int> processors;
  for (std::size_t i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) processors.push_back(static_cast<int>(i));
  }
  return processors;
}

/// A thread that computes, or sleeps where it is told to.
class OtherThread {
 public:
  OtherThread()
      : thread_([this] {
          watched_.emplace();
          is_ready_ = true;
          while (!is_done_) {
            if (sleeps_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
        }) {
    while (!is_ready_) std::this_thread::yield();
  }
  ~OtherThread() {
    is_done_ = true;
    thread_.join();
  }
  OtherThread(const OtherThread&) = delete;
  OtherThread& operator=(const OtherThread&) = delete;

  const WatchedThread& watched() const { return *watched_; }
  void sleep() { sleeps_ = true; }

 private:
  std::optional<WatchedThread> watched_;
  std::atomic<bool> is_ready_ = false, is_done_ = false, sleeps_ = false;
  std::thread thread_;
};

}  // namespace

TEST_CASE("processor: a thread that leaves one may come back", "[core]") {
  const std::vector<int> before = processors_of(0);
  CHECK(std::find(before.begin(), before.end(), this_processor()) != before.end());
  leave_processor(this_processor());
  CHECK(processors_of(0) == before);
  leave_processor(-1);
  leave_processor(before.back() + 1);
  CHECK(processors_of(0) == before);
}

TEST_CASE("processor: a thread with nowhere else to go stays", "[core]") {
  std::thread([] {
    cpu_set_t one;
    CPU_ZERO(&one);
    const int here = this_processor();
    CPU_SET(static_cast<std::size_t>(here), &one);
    CHECK(::sched_setaffinity(0, sizeof one, &one) == 0);
    leave_processor(here);
    CHECK(processors_of(0) == std::vector<int>{here});
    CHECK(this_processor() == here);
  }).join();
}

TEST_CASE("processor: a watched thread's time passes while it computes, and not while it sleeps",
          "[core]") {
  OtherThread other;
  const std::int64_t begin = other.watched().nanoseconds();
  while (other.watched().nanoseconds() < begin + 2'000'000) std::this_thread::yield();
  other.sleep();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const std::int64_t slept = other.watched().nanoseconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(other.watched().nanoseconds() - slept < 10'000'000);
  CHECK(other.watched().id() != WatchedThread().id());
}

TEST_CASE("processor: a thread that is brought here may go again afterwards", "[core]") {
  const OtherThread other;
  const std::vector<int> before = processors_of(other.watched().id());
  {
    const BroughtHere brought(other.watched());
    CHECK(processors_of(other.watched().id()).size() == 1);
  }
  CHECK(processors_of(other.watched().id()) == before);
}

TEST_CASE("processor: no thread stays where a loop has put it", "[core]") {
  const int threads = at::get_num_threads();
  at::set_num_threads(3);
  {
    // More threads than processors, so that helpers lose theirs.
    const OtherThread busy, also_busy;
    std::atomic<std::int64_t> sum = 0;
    for (int repeat = 0; repeat < 200; ++repeat) {
      parallel_for(0, 12, 1, [&](std::int64_t first, std::int64_t last) {
        const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
        while (std::chrono::steady_clock::now() < end) {
        }
        sum += last - first;
      });
    }
    CHECK(sum == 200 * 12);
  }
  at::set_num_threads(threads);
  const std::vector<int> expected = processors_of(0);
  for (const auto& task : fs::directory_iterator("/proc/self/task")) {
    CHECK(processors_of(std::stoll(task.path().filename().string())) == expected);
  }
}

}  // namespace prefopt

#endif
