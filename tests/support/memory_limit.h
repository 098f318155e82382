// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <fstream>
#include <system_error>

namespace prefopt::testing_support {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kLimitsMemory = false;
#else
inline constexpr bool kLimitsMemory = true;
#endif

/// While this lives the process gets at most 256 MiB more: whoever trusts a size that a bad file
/// names runs into it. Sanitizers reserve their own addresses and are left alone.
class MemoryLimit {
 public:
  MemoryLimit() {
    if (!kLimitsMemory) return;
    constexpr rlim_t kMore = rlim_t{256} << 20;
    rlim_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    set(pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + kMore);
  }
  ~MemoryLimit() { ::setrlimit(RLIMIT_AS, &before_); }
  MemoryLimit(const MemoryLimit&) = delete;
  MemoryLimit& operator=(const MemoryLimit&) = delete;

 private:
  static rlimit present() {
    rlimit limit{};
    if (::getrlimit(RLIMIT_AS, &limit) != 0) {
      throw std::system_error(errno, std::generic_category(), "getrlimit");
    }
    return limit;
  }
  void set(rlim_t bytes) {
    const rlimit limit{.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    if (::setrlimit(RLIMIT_AS, &limit) != 0) {
      throw std::system_error(errno, std::generic_category(), "setrlimit");
    }
  }

  rlimit before_ = present();
};

}  // namespace prefopt::testing_support
