// SPDX-License-Identifier: Apache-2.0
#include "core/folder_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

/// To write to as well, which some network drives want of a lock, or else to read: what may not be
/// written to, as a file of another user, locks as well. `errno` is that of the first try.
Descriptor open_lock(const std::string& path) {
  Descriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (file.get() >= 0) return file;
  const int why = errno;
  Descriptor to_read(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  errno = why;
  return to_read;
}

/// As the holder wrote it down.
std::string holder_in(int file) {
  char text[32];
  const ssize_t size = ::pread(file, text, sizeof text, 0);
  const std::string_view id(text, static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
  const bool is_id = !id.empty() && id.find_first_not_of("0123456789") == std::string_view::npos;
  return is_id ? fmt::format("process {}", id) : "another process";
}

/// For people: the lock is the system's, so that a text that cannot be written costs nothing else.
void write_own_id(int file) {
  const std::string id = fmt::format("{}", ::getpid());
  if (::ftruncate(file, 0) != 0) return;
  [[maybe_unused]] const ssize_t written = ::pwrite(file, id.data(), id.size(), 0);
}

}  // namespace

FolderLock::FolderLock(const std::string& path) : file_(open_lock(path)) {
  const auto fail = [&] {
    throw CheckpointError(
        fmt::format("{}: expected a file to lock this folder by, got {}", path, last_error()));
  };
  if (file_.get() < 0) fail();
  int result = 0;
  do {
    result = ::flock(file_.get(), LOCK_EX | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  if (result == 0) {
    write_own_id(file_.get());
  } else if (errno == EWOULDBLOCK) {
    holder_ = holder_in(file_.get());
  } else if (errno != ENOLCK && errno != EOPNOTSUPP && errno != ENOSYS) {
    fail();
  }
}

}  // namespace prefopt::detail
