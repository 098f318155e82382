// SPDX-License-Identifier: Apache-2.0
#include "core/file.h"

#include <fcntl.h>
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): mkostemp is not in <cstdlib>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

namespace prefopt::detail {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  bool close() {
    const int fd = fd_;
    fd_ = -1;
    return ::close(fd) == 0;
  }

 private:
  int fd_;
};

std::string last_error() { return std::generic_category().message(errno); }

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

}  // namespace

std::string try_read_file(const std::string& path, std::string& bytes) {
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return last_error();
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return last_error();
  if (S_ISDIR(status.st_mode)) return "a folder";
  bytes.clear();
  // Pipes and /proc files say size 0: read until the end instead of trusting the size.
  bytes.reserve(static_cast<std::size_t>(status.st_size));
  char buffer[1 << 16];
  while (true) {
    const ssize_t got = ::read(file.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return last_error();
    if (got == 0) return "";
    bytes.append(buffer, static_cast<std::size_t>(got));
  }
}

std::string try_write_file(const std::string& path, std::string_view bytes) {
  std::string beside = path + ".XXXXXX";  // a name of its own: another process may write here too
  {
    Descriptor file(::mkostemp(beside.data(), O_CLOEXEC));
    if (file.get() < 0) return last_error();
    // mkostemp's files are for their owner alone.
    if (!write_all(file.get(), bytes) || ::fchmod(file.get(), 0644) != 0 ||
        ::fsync(file.get()) != 0 || !file.close()) {
      const std::string why = last_error();
      ::unlink(beside.c_str());
      return why;
    }
  }
  if (std::rename(beside.c_str(), path.c_str()) != 0) {
    const std::string why = last_error();
    ::unlink(beside.c_str());
    return why;
  }
  const auto parent = std::filesystem::path(path).parent_path();
  Descriptor folder(::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_CLOEXEC));
  if (folder.get() < 0 || ::fsync(folder.get()) != 0) return last_error();
  return "";
}

}  // namespace prefopt::detail
