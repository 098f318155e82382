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

#include "core/descriptor.h"

namespace prefopt::detail {
namespace {

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
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
      : name_(path + ".XXXXXX"), file_(::mkostemp(name_.data(), O_CLOEXEC)), there_(opened()) {}
  ~FileBeside() {
    if (there_) ::unlink(name_.c_str());
  }
  FileBeside(const FileBeside&) = delete;
  FileBeside& operator=(const FileBeside&) = delete;

  bool opened() const { return file_.get() >= 0; }
  int fd() const { return file_.get(); }

  // mkostemp's files are for their owner alone.
  bool move_to(const std::string& path) {
    if (::fchmod(fd(), 0644) != 0 || ::fsync(fd()) != 0 || !file_.close() ||
        std::rename(name_.c_str(), path.c_str()) != 0) {
      return false;
    }
    there_ = false;
    return true;
  }

 private:
  std::string name_;
  Descriptor file_;
  bool there_;
};

}  // namespace

std::string try_read_file(const std::string& path, std::string& bytes) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
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
  return try_write_parts(path, 1, [&](std::size_t) { return bytes; });
}

std::string try_write_parts(const std::string& path, std::size_t count,
                            const std::function<std::string_view(std::size_t)>& part) {
  FileBeside beside(path);
  if (!beside.opened()) return last_error();
  for (std::size_t i = 0; i < count; ++i) {
    if (!write_all(beside.fd(), part(i))) return last_error();
  }
  if (!beside.move_to(path)) return last_error();
  const auto parent = std::filesystem::path(path).parent_path();
  const Descriptor folder(::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_CLOEXEC));
  if (folder.get() < 0 || ::fsync(folder.get()) != 0) return last_error();
  return "";
}

}  // namespace prefopt::detail
