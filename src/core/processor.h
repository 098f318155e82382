// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

namespace prefopt {

// Which processor threads run on. Where the system does not say, or does not let it be changed, a
// processor is -1 and threads stay where they are.

/// Returns the number of the caller's processor.
int this_processor();

/// Moves the caller to another processor than that one, if it may run on another. It is free to
/// come back.
void leave_processor(int processor);

/// A thread that others look after.
class WatchedThread {
 public:
  /// Watches the calling thread.
  WatchedThread();

  /// Returns the time that it has had a processor; 0 where the system does not say.
  std::int64_t nanoseconds() const;
  std::int64_t id() const { return id_; }

 private:
  std::int64_t id_ = 0, clock_ = 0;
};

/// Keeps a thread on the caller's processor for as long as this lives.
class BroughtHere {
 public:
  explicit BroughtHere(const WatchedThread& thread);
  BroughtHere(BroughtHere&&) noexcept;
  BroughtHere& operator=(BroughtHere&&) = delete;
  ~BroughtHere();

 private:
  struct Stay;
  std::unique_ptr<Stay> stay_;
};

}  // namespace prefopt
