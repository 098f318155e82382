// SPDX-License-Identifier: Apache-2.0
#include "core/parallel.h"

#include <ATen/Parallel.h>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace prefopt {
namespace {

#if defined(__SANITIZE_THREAD__)
/// The order of all parts of a loop and the code around it, told to the thread sanitizer, which
/// cannot see it in LibTorch's OpenMP. Two addresses, or parts would be ordered among themselves.
class Order {
 public:
  Order() { __tsan_release(&before_); }
  ~Order() { __tsan_acquire(&after_); }
  Order(const Order&) = delete;
  Order& operator=(const Order&) = delete;

  class Part {
   public:
    explicit Part(Order& order) : order_(order) { __tsan_acquire(&order_.before_); }
    ~Part() { __tsan_release(&order_.after_); }
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

   private:
    Order& order_;
  };

 private:
  char before_ = 0, after_ = 0;
};
#endif

}  // namespace

void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain,
                  c10::function_ref<void(std::int64_t, std::int64_t)> f) {
#if defined(__SANITIZE_THREAD__)
  Order order;
  at::parallel_for(begin, end, grain, [&](std::int64_t first, std::int64_t last) {
    const Order::Part part(order);
    f(first, last);
  });
#else
  at::parallel_for(begin, end, grain, f);
#endif
}

std::int64_t thread_count() { return at::get_num_threads(); }

}  // namespace prefopt
