// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "support/files.h"
#include "support/temp_dir.h"

namespace prefopt::fuzz {

/// A file in memory, for readers that take a path.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view bytes)
      : fd_(::memfd_create("prefopt-fuzz", MFD_CLOEXEC)), path_("/proc/self/fd/") {
    if (fd_ < 0) throw std::system_error(errno, std::generic_category(), "memfd_create");
    path_ += std::to_string(fd_);
    while (!bytes.empty()) {
      const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
      if (written < 0) throw std::system_error(errno, std::generic_category(), path_);
      bytes.remove_prefix(static_cast<std::size_t>(written));
    }
  }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  int fd_;
  std::string path_;
};

/// Two inputs in one: what stands before the first zero byte, and what stands behind it.
inline std::pair<std::string_view, std::string_view> split_input(std::string_view bytes) {
  const std::size_t zero = bytes.find('\0');
  if (zero == std::string_view::npos) return {bytes, {}};
  return {bytes.substr(0, zero), bytes.substr(zero + 1)};
}

/// A folder for readers that look for several files.
class InputFolder {
 public:
  const std::string& path() const { return folder_.path(); }
  std::string file(const std::string& name) const { return folder_.file(name); }
  void put(const std::string& name, std::string_view bytes) const {
    testing_support::put(file(name), std::string(bytes));
  }

 private:
  testing_support::TempDir folder_;
};

}  // namespace prefopt::fuzz
