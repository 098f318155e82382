// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace prefopt {

/// Keeps LibTorch's operators to the calling thread for as long as it lives; loops of parallel.h
/// have as many threads as before. For code whose work is in such loops: OpenMP's threads look for
/// the next operator for milliseconds, on processors that those of the pool need. Nothing where
/// loops run on LibTorch's threads.
class OneThread {
 public:
  OneThread();
  ~OneThread();
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

  /// Returns LibTorch's number of threads without regard to a OneThread of the calling thread.
  static std::int64_t threads_otherwise();

 private:
  bool is_outermost_ = false;
  int of_mkl_ = 0;
};

}  // namespace prefopt
