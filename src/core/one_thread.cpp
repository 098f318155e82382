// SPDX-License-Identifier: Apache-2.0
#include "core/one_thread.h"

#include <ATen/Parallel.h>

#include "core/loop_threads.h"

// Those of the libraries that LibTorch has loaded, if any.
extern "C" {
__attribute__((weak)) void omp_set_num_threads(int threads);
__attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);
}

namespace prefopt {
namespace {

thread_local int threads_before = 0;  // 0: the thread has no OneThread

// LibTorch sets a thread's number in its first operator, and so does code in its headers.
int initialized_threads() {
  at::internal::lazy_init_num_threads();
  return at::get_num_threads();
}

}  // namespace

OneThread::OneThread() {
  if (threads_before > 0 || loop_threads() == LoopThreads::kLibTorch) return;
  is_outermost_ = true;
  threads_before = initialized_threads();
  if (omp_set_num_threads != nullptr) omp_set_num_threads(1);
  if (MKL_Set_Num_Threads_Local != nullptr) of_mkl_ = MKL_Set_Num_Threads_Local(1);
}

OneThread::~OneThread() {
  if (!is_outermost_) return;
  if (omp_set_num_threads != nullptr) omp_set_num_threads(threads_before);
  if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(of_mkl_);
  threads_before = 0;
}

std::int64_t OneThread::threads_otherwise() {
  return threads_before > 0 ? threads_before : initialized_threads();
}

}  // namespace prefopt
