// SPDX-License-Identifier: Apache-2.0
#include "core/folder_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

namespace prefopt::detail {
namespace {

/// As the holder wrote it down.
std::string holder_in(int file) {
  char text[32];
  const ssize_t size = ::pread(file, text, sizeof text, 0);
  return size > 0 ? fmt::format("process {}", std::string(text, static_cast<std::size_t>(size)))
                  : "another process";
}

/// For people: the lock is the system's, so that a text that cannot be written costs nothing else.
void write_own_id(int file) {
  const std::string id = fmt::format("{}", ::getpid());
  if (::ftruncate(file, 0) != 0) return;
  [[maybe_unused]] const ssize_t written = ::pwrite(file, id.data(), id.size(), 0);
}

}  // namespace

FolderLock::FolderLock(const std::string& path)
    : file_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
  if (file_.get() < 0) return;
  if (::flock(file_.get(), LOCK_EX | LOCK_NB) == 0) {
    write_own_id(file_.get());
  } else if (errno == EWOULDBLOCK) {
    holder_ = holder_in(file_.get());
  }
}

}  // namespace prefopt::detail
