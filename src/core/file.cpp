// SPDX-License-Identifier: Apache-2.0
#include "core/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "core/descriptor.h"
#include "core/system_calls.h"

namespace prefopt::detail {
namespace {

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = system_calls().write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

// A file beside `path`, under a name of its own because another process may write here too, that is
// gone at the end of its scope unless it was moved to its place.
class FileBeside {
 public:
  explicit FileBeside(const std::string& path)
      : name_(path + ".XXXXXX"),
        fd_(system_calls().mkostemp(name_.data(), O_CLOEXEC)),
        there_(opened()) {}
  ~FileBeside() {
    if (fd_ >= 0) ::close(fd_);
    if (there_) ::unlink(name_.c_str());
  }
  FileBeside(const FileBeside&) = delete;
  FileBeside& operator=(const FileBeside&) = delete;

  bool opened() const { return fd_ >= 0; }
  int fd() const { return fd_; }

  // mkostemp's files are for their owner alone.
  bool move_to(const std::string& path) {
    if (::fchmod(fd_, 0644) != 0 || system_calls().fsync(fd_) != 0 || !close() ||
        system_calls().rename(name_.c_str(), path.c_str()) != 0) {
      return false;
    }
    there_ = false;
    return true;
  }

 private:
  // Linux gives a descriptor back even where close fails.
  bool close() { return system_calls().close(std::exchange(fd_, -1)) == 0; }

  std::string name_;
  int fd_;
  bool there_;
};

std::string try_sync_parent(const std::string& path) {
  const auto parent = std::filesystem::path(path).parent_path();
  const Descriptor folder(::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_CLOEXEC));
  return folder.get() < 0 || system_calls().fsync(folder.get()) != 0 ? last_error() : "";
}

}  // namespace

std::string try_read_file(const std::string& path, std::string& bytes) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return last_error();
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return last_error();
  if (S_ISDIR(status.st_mode)) return "a folder";
  const auto too_large = [](std::int64_t size) {
    return fmt::format("{} bytes or more, where {} are the limit", size, kMostReadBytes);
  };
  if (status.st_size > kMostReadBytes) return too_large(status.st_size);
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
    if (std::ssize(bytes) > kMostReadBytes) return too_large(std::ssize(bytes));
  }
}

std::string try_write_file(const std::string& path, std::string_view bytes) {
  return try_write_parts(path, 1, [&](std::size_t) { return bytes; });
}

std::string try_write_parts(const std::string& path, std::size_t count,
                            const std::function<std::string_view(std::size_t)>& part) {
  FileBeside beside(path);
  if (!beside.opened()) return last_error();
  for (std::size_t i = 0; i < count; ++i) {
    if (!write_all(beside.fd(), part(i))) return last_error();
  }
  return beside.move_to(path) ? try_sync_parent(path) : last_error();
}

std::string try_make_directory(const std::string& path) {
  constexpr mode_t kForAll = 0777;  // less the umask
  std::filesystem::path made;
  for (const auto& part : std::filesystem::path(path)) {
    made /= part;
    std::error_code ignored;
    if (part.empty() || std::filesystem::is_directory(made, ignored)) continue;
    // Another process may have been faster.
    if (system_calls().mkdir(made.c_str(), kForAll) != 0 && errno != EEXIST) return last_error();
  }
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored) ? "" : "a file of that name";
}

std::string try_move(const std::string& from, const std::string& to) {
  return system_calls().rename(from.c_str(), to.c_str()) == 0 ? try_sync_parent(to) : last_error();
}

std::string try_link(const std::string& target, const std::string& path) {
  const std::string beside = path + ".new";
  ::unlink(beside.c_str());  // of a process that ended here
  if (system_calls().symlink(target.c_str(), beside.c_str()) != 0) return last_error();
  return try_move(beside, path);
}

AppendedFile::~AppendedFile() {
  if (fd_ >= 0) ::close(fd_);
}

std::string AppendedFile::try_open(const std::string& path) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  return fd_ >= 0 ? "" : last_error();
}

std::string AppendedFile::try_append(std::string_view bytes) {
  return write_all(fd_, bytes) ? "" : last_error();
}

std::string AppendedFile::try_sync() { return system_calls().fsync(fd_) == 0 ? "" : last_error(); }

}  // namespace prefopt::detail
