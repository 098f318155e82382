// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/one_thread.h"
#include "core/parallel.h"
#include "support/catch.h"
#include "support/child.h"

namespace prefopt {
namespace {

/// LibTorch's number of threads for a while.
class ThreadsForTest {
 public:
  explicit ThreadsForTest(int threads) : before_(at::get_num_threads()) {
    at::set_num_threads(threads);
  }
  ~ThreadsForTest() { at::set_num_threads(before_); }
  ThreadsForTest(const ThreadsForTest&) = delete;
  ThreadsForTest& operator=(const ThreadsForTest&) = delete;

 private:
  int before_;
};

/// How often a loop comes to each number.
std::vector<int> visits(std::int64_t begin, std::int64_t end, std::int64_t grain) {
  std::vector<std::atomic<int>> counts(static_cast<std::size_t>(end));
  parallel_for(begin, end, grain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) ++counts[static_cast<std::size_t>(i)];
  });
  return {counts.begin(), counts.end()};
}

std::vector<int> ones_from(std::int64_t begin, std::int64_t end) {
  std::vector<int> counts(static_cast<std::size_t>(end), 1);
  std::fill_n(counts.begin(), begin, 0);
  return counts;
}

/// Waits until a second thread has come here, so that a test needs a part on each.
class TwoThreads {
 public:
  void meet() {
    {
      const std::lock_guard lock(mutex_);
      threads_.insert(std::this_thread::get_id());
    }
    while (count() < 2) std::this_thread::yield();
  }
  std::size_t count() {
    const std::lock_guard lock(mutex_);
    return threads_.size();
  }

 private:
  std::mutex mutex_;
  std::set<std::thread::id> threads_;
};

/// Fails where `work` throws or hangs in a child process.
void in_child(const std::function<void()>& work) {
  const pid_t child = testing_support::start_child([&] {
    ::alarm(20);
    work();
  });
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}

}  // namespace

TEST_CASE("parallel loops come to each number once, whatever size, grain and threads", "[core]") {
  for (const int threads : {1, 2, 3, 8}) {
    const ThreadsForTest guard(threads);
    for (const std::int64_t end : {1, 2, 3, 7, 64, 1000, 4099}) {
      for (const std::int64_t grain : {0, 1, 5, 64, 5000}) {
        CAPTURE(threads, end, grain);
        CHECK(visits(0, end, grain) == ones_from(0, end));
        CHECK(visits(end / 2, end, grain) == ones_from(end / 2, end));
      }
    }
  }
}

TEST_CASE("parallel loops: a part but the last has at least the grain", "[core]") {
  const ThreadsForTest guard(3);
  std::mutex mutex;
  std::set<std::pair<std::int64_t, std::int64_t>> parts;
  parallel_for(3, 1003, 32, [&](std::int64_t first, std::int64_t last) {
    const std::lock_guard lock(mutex);
    parts.emplace(first, last);
  });
  REQUIRE(parts.size() > 3);
  std::int64_t next = 3;
  for (const auto& [first, last] : parts) {
    CHECK(first == next);
    CHECK((last - first >= 32 || last == 1003));
    next = last;
  }
  CHECK(next == 1003);
}

TEST_CASE("parallel loops without numbers call nothing", "[core]") {
  parallel_for(5, 5, 1, [](std::int64_t, std::int64_t) { FAIL("called"); });
  parallel_for(5, 2, 1, [](std::int64_t, std::int64_t) { FAIL("called"); });
}

TEST_CASE("parallel loops use a second thread, and not with one", "[core]") {
  TwoThreads both;
  {
    const ThreadsForTest guard(2);
    parallel_for(0, 64, 1, [&](std::int64_t, std::int64_t) { both.meet(); });
  }
  CHECK(both.count() == 2);
  const ThreadsForTest guard(1);
  std::vector<std::pair<std::int64_t, std::int64_t>> parts;
  const auto caller = std::this_thread::get_id();
  parallel_for(0, 64, 1, [&](std::int64_t first, std::int64_t last) {
    CHECK(std::this_thread::get_id() == caller);
    parts.emplace_back(first, last);
  });
  CHECK(parts == std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 64}});
}

TEST_CASE("parallel loops: a caller does all that no other thread begins", "[core]") {
  // In a child, whose pool has one thread: it is kept in a part of another caller's loop.
  const ThreadsForTest guard(2);
  in_child([] {
    std::atomic<bool> is_kept = false, is_done = false;
    std::thread other([&] {
      const auto caller = std::this_thread::get_id();
      at::set_num_threads(2);
      parallel_for(0, 2, 1, [&](std::int64_t, std::int64_t) {
        if (std::this_thread::get_id() != caller) is_kept = true;
        while (!is_done) std::this_thread::yield();
      });
    });
    while (!is_kept) std::this_thread::yield();
    const auto caller = std::this_thread::get_id();
    std::int64_t sum = 0;
    parallel_for(0, 1000, 1, [&](std::int64_t first, std::int64_t last) {
      if (std::this_thread::get_id() != caller) throw std::runtime_error("a thread too many");
      for (std::int64_t i = first; i < last; ++i) sum += i;
    });
    is_done = true;
    other.join();
    if (sum != 499500) throw std::runtime_error("numbers left out");
  });
}

TEST_CASE("parallel loops throw what the first part in order throws", "[core]") {
  const ThreadsForTest guard(2);
  for (int repeat = 0; repeat < 50; ++repeat) {
    std::string message;
    try {
      parallel_for(0, 200, 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i) {
          // The later ones are thrown at once, the first one takes its time.
          if (i == 40) std::this_thread::sleep_for(std::chrono::microseconds(200));
          if (i >= 40) throw std::runtime_error(std::to_string(i));
        }
      });
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    CHECK(message == "40");
  }
  CHECK(visits(0, 100, 1) == ones_from(0, 100));  // and work afterwards
}

TEST_CASE("parallel loops: one within a part is its thread's, and LibTorch's too", "[core]") {
  const ThreadsForTest guard(2);
  std::atomic<std::int64_t> sum = 0;
  TwoThreads both;
  parallel_for(0, 8, 1, [&](std::int64_t first, std::int64_t last) {
    both.meet();
    CHECK(at::get_num_threads() == 1);
    const auto here = std::this_thread::get_id();
    for (std::int64_t i = first; i < last; ++i) {
      parallel_for(0, 100, 1, [&](std::int64_t inner, std::int64_t end) {
        CHECK(std::this_thread::get_id() == here);
        for (; inner < end; ++inner) sum += inner;
      });
    }
  });
  CHECK(sum == 8 * 4950);
  CHECK(at::get_num_threads() == 2);
}

TEST_CASE("parallel loops keep their threads where LibTorch's operators have one", "[core]") {
  const ThreadsForTest guard(2);
  {
    const OneThread one_thread;
    const OneThread inner;
    CHECK(at::get_num_threads() == 1);
    CHECK(thread_count() == 2);
    TwoThreads both;
    parallel_for(0, 8, 1, [&](std::int64_t, std::int64_t) { both.meet(); });
    CHECK(both.count() == 2);
    CHECK(at::get_num_threads() == 1);
  }
  CHECK(at::get_num_threads() == 2);
  CHECK(thread_count() == 2);
}

TEST_CASE("parallel loops: several callers at once", "[core]") {
  const ThreadsForTest guard(3);
  std::vector<std::int64_t> sums(4);
  std::vector<std::thread> callers;
  for (std::size_t caller = 0; caller < sums.size(); ++caller) {
    callers.emplace_back([&, caller] {
      for (int repeat = 0; repeat < 200; ++repeat) {
        std::atomic<std::int64_t> sum = 0;
        parallel_for(0, 100, 3, [&](std::int64_t first, std::int64_t last) {
          for (; first < last; ++first) sum += first;
        });
        sums[caller] += sum;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(sums == std::vector<std::int64_t>(4, 200 * 4950));
}

TEST_CASE("parallel loops: parts have the caller's modes and floating-point environment",
          "[core]") {
  const ThreadsForTest guard(2);
  const auto check_all = [](bool grad, bool inference, int rounding) {
    TwoThreads both;
    std::atomic<int> wrong = 0;
    parallel_for(0, 16, 1, [&](std::int64_t, std::int64_t) {
      both.meet();
      wrong += at::GradMode::is_enabled() != grad;
      wrong += c10::InferenceMode::is_enabled() != inference;
      wrong += std::fegetround() != rounding;
    });
    CHECK(wrong == 0);
  };
  check_all(true, false, FE_TONEAREST);
  {
    const at::NoGradGuard no_grad;
    std::fesetround(FE_UPWARD);
    check_all(false, false, FE_UPWARD);
    std::fesetround(FE_TONEAREST);
  }
  {
    const c10::InferenceMode inference;
    check_all(false, true, FE_TONEAREST);
  }
  check_all(true, false, FE_TONEAREST);
}

TEST_CASE("parallel loops work in a child process", "[core]") {
  const ThreadsForTest guard(2);
  CHECK(visits(0, 100, 1) == ones_from(0, 100));
  in_child([] {
    TwoThreads both;
    parallel_for(0, 64, 1, [&](std::int64_t, std::int64_t) { both.meet(); });
    if (visits(0, 100, 1) != ones_from(0, 100)) throw std::runtime_error("numbers left out");
  });
}

}  // namespace prefopt
