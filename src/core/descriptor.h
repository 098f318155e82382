// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

namespace prefopt::detail {

/// A file descriptor, closed at the end of its scope.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor(Descriptor&& other) noexcept : fd_(other.release()) {}
  int get() const { return fd_; }
  /// Hands it over to the caller.
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

/// Returns the words for `errno`.
inline std::string last_error() { return std::generic_category().message(errno); }

}  // namespace prefopt::detail
