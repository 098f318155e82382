// SPDX-License-Identifier: Apache-2.0
#include "core/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "core/descriptor.h"
#include "core/random.h"
#include "core/system_calls.h"

namespace prefopt::detail {
namespace {

// The beginning of the file that is a link where the drive has none.
constexpr std::string_view kLinkFile = "prefopt link: ";

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = system_calls().write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

bool sync_file(int fd) {
  int result = 0;
  do {
    result = system_calls().fsync(fd);
  } while (result != 0 && errno == EINTR);
  return result == 0;
}

// Linux gives the descriptor back even where close fails or a signal comes in between: a second try
// could close a file of another thread.
bool close_once(int fd) { return system_calls().close(fd) == 0 || errno == EINTR; }

constexpr std::size_t kLettersBeside = 6;
constexpr std::size_t kRandomLetters = 4;

// Letters and digits for a number.
std::string letters_of(std::uint64_t number, std::size_t count) {
  constexpr std::string_view kLetters =
      "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  std::string letters;
  for (std::size_t i = 0; i < count; ++i, number /= kLetters.size()) {
    letters += kLetters[number % kLetters.size()];
  }
  return letters;
}

constexpr mode_t kPermissions = 0777;

// Returns the letters that go with the random ones, by which a name is known as one made here.
std::string check_letters(std::string_view name, std::string_view random) {
  std::uint64_t hash = 0;
  for (const std::string_view part : {name, random}) {
    for (const char c : part) hash = splitmix64(hash ^ static_cast<unsigned char>(c));
  }
  return letters_of(hash, kLettersBeside - kRandomLetters);
}

// Returns the name of a file next to `path` that becomes it: `path`, a dot and six letters.
std::string name_beside(const std::string& path) {
  static std::atomic<std::uint64_t> calls{0};
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  const std::string random =
      letters_of(splitmix64(static_cast<std::uint64_t>(now) +
                            splitmix64((static_cast<std::uint64_t>(::getpid()) << 32) + calls++)),
                 kRandomLetters);
  const std::string name = std::filesystem::path(path).filename().string();
  return fmt::format("{}.{}{}", path, random, check_letters(name, random));
}

// Returns whether nobody has written to a file for a day.
bool is_old(const struct stat& status) {
  constexpr std::time_t kDay = 24 * 3600;
  return status.st_mtime < std::time(nullptr) - kDay;
}

// Returns whether a file `name`.`letters` is one that was to become `name`. Those of the first
// version are known less surely, as mkostemp made them: letters that nobody types, for their owner
// alone. It did not lock them either, so that only their age says that nobody writes them.
bool was_to_become(std::string_view name, std::string_view letters, const struct stat& status) {
  if (letters.size() != kLettersBeside) return false;
  const std::string_view random = letters.substr(0, kRandomLetters);
  if (letters.substr(kRandomLetters) == check_letters(name, random)) return true;
  const auto is_upper = [](char c) { return c >= 'A' && c <= 'Z'; };
  const auto is_lower = [](char c) { return c >= 'a' && c <= 'z'; };
  const auto is_any = [&](char c) { return is_upper(c) || is_lower(c) || (c >= '0' && c <= '9'); };
  constexpr mode_t kForOwner = 0600;
  return (status.st_mode & kPermissions) == kForOwner && is_old(status) &&
         std::all_of(letters.begin(), letters.end(), is_any) &&
         std::any_of(letters.begin() + 1, letters.end(), is_upper) &&
         std::any_of(letters.begin(), letters.end(), is_lower);
}

// Those of the file that is to be replaced; none where there is no such file.
std::optional<mode_t> permissions_of(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return std::nullopt;
  return status.st_mode & kPermissions;
}

// A file next to `path`, under another name than a second process that writes here has, that is
// gone at the end of its scope unless it was moved to its place. It is locked while it is
// written, so that what a killed process left can be told from it.
class FileBeside {
 public:
  explicit FileBeside(const std::string& path) : replaced_(permissions_of(path)) {
    constexpr mode_t kForOwner = 0600;
    constexpr mode_t kForAll = 0666;  // less the umask
    constexpr int kTries = 100;
    for (int i = 0; i < kTries && fd_ < 0 && (i == 0 || errno == EEXIST); ++i) {
      name_ = name_beside(path);
      fd_ = system_calls().open(name_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC,
                                replaced_ ? kForOwner : kForAll);
      if (fd_ >= 0 && was_taken_for_left()) {
        ::close(std::exchange(fd_, -1));
        errno = EEXIST;
      }
    }
    there_ = opened();
  }
  ~FileBeside() {
    if (fd_ >= 0) ::close(fd_);
    if (there_) ::unlink(name_.c_str());
  }
  FileBeside(const FileBeside&) = delete;
  FileBeside& operator=(const FileBeside&) = delete;

  bool opened() const { return fd_ >= 0; }
  int fd() const { return fd_; }

  bool move_to(const std::string& path) {
    // Shares the lock, which so lasts until the file has its name.
    const Descriptor lock(::fcntl(fd_, F_DUPFD_CLOEXEC, 0));
    if (lock.get() < 0 || !take_permissions() || !sync_file(fd_) ||
        !close_once(std::exchange(fd_, -1)) ||
        system_calls().rename(name_.c_str(), path.c_str()) != 0) {
      return false;
    }
    there_ = false;
    return true;
  }

 private:
  // Locks the file. Another process may have removed it, before it was locked, as one that nobody
  // writes. Where the drive has no locks nothing is removed.
  bool was_taken_for_left() const {
    int result = 0;
    do {
      result = ::flock(fd_, LOCK_EX);
    } while (result != 0 && errno == EINTR);
    struct stat status {};
    return ::fstat(fd_, &status) == 0 && status.st_nlink == 0;
  }

  // Drives whose files all have the same ones refuse to set any.
  bool take_permissions() const {
    struct stat status {};
    if (!replaced_) return true;
    if (::fstat(fd_, &status) != 0) return false;
    return (status.st_mode & kPermissions) == *replaced_ || ::fchmod(fd_, *replaced_) == 0;
  }

  std::optional<mode_t> replaced_;
  std::string name_;
  int fd_ = -1;
  bool there_ = false;
};

// Errors of drives that cannot sync a folder, and of folders that may be written but not read. The
// rename is done by then, and there is no other way to make it last.
bool cannot_sync_folders(int error) {
  return error == EINVAL || error == EACCES || error == EPERM || error == ENOTSUP ||
         error == EOPNOTSUPP || error == ENOSYS || error == EBADF || error == EISDIR;
}

std::string try_sync_folder(const std::filesystem::path& path) {
  const Descriptor folder(::open(path.empty() ? "." : path.c_str(), O_RDONLY | O_CLOEXEC));
  const bool is_synced = folder.get() >= 0 && sync_file(folder.get());
  return is_synced || cannot_sync_folders(errno) ? "" : last_error();
}

std::string try_sync_parent(const std::string& path) {
  return try_sync_folder(std::filesystem::path(path).parent_path());
}

// Errors of drives without symbolic links, as exFAT and some network drives.
bool has_no_links(int error) {
  return error == EPERM || error == ENOTSUP || error == EOPNOTSUPP || error == ENOSYS ||
         error == EINVAL || error == EACCES;
}

// Returns the name in a link or in the small file that takes its place; empty for anything else.
std::string target_of(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path target = fs::read_symlink(path, error);
  if (!error) return target.string();
  constexpr std::uintmax_t kMostBytes = 300;
  std::string text;
  if (!fs::is_regular_file(path, error) || fs::file_size(path, error) > kMostBytes || error ||
      !try_read_file(path, text).empty() || !text.starts_with(kLinkFile) || !text.ends_with('\n')) {
    return "";
  }
  text = text.substr(kLinkFile.size(), text.size() - kLinkFile.size() - 1);
  const bool is_name = text != "." && text != ".." &&
                       text.find_first_of(std::string_view("/\n\0", 3)) == std::string::npos;
  return is_name ? text : "";
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
    const std::filesystem::path parent = made;
    made /= part;
    std::error_code ignored;
    if (part.empty() || std::filesystem::is_directory(made, ignored)) continue;
    // Another process may have been faster.
    if (system_calls().mkdir(made.c_str(), kForAll) != 0 && errno != EEXIST) return last_error();
    if (auto why = try_sync_folder(parent); !why.empty()) return why;
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
  if (system_calls().symlink(target.c_str(), beside.c_str()) == 0) return try_move(beside, path);
  return has_no_links(errno) ? try_write_file(path, fmt::format("{}{}\n", kLinkFile, target))
                             : last_error();
}

std::string link_target(const std::string& path) { return target_of(path); }

std::string followed(const std::string& path) {
  namespace fs = std::filesystem;
  fs::path link(path);
  if (!link.has_filename()) link = link.parent_path();  // `last/`
  std::error_code ignored;
  if (!fs::is_regular_file(link, ignored)) return path;
  const std::string target = target_of(link.string());
  return target.empty() ? path : (link.parent_path() / target).string();
}

void remove_unfinished_files(const std::string& folder,
                             const std::function<bool(std::string_view)>& is_ours) {
  std::error_code error;
  for (std::filesystem::directory_iterator at(folder, error), end; !error && at != end;
       at.increment(error)) {
    const std::string name = at->path().filename().string();
    const auto dot = name.rfind('.');
    if (dot == std::string::npos || !is_ours(std::string_view(name).substr(0, dot))) continue;
    const Descriptor file(::open(at->path().c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    struct stat status {};
    if (file.get() < 0 || ::fstat(file.get(), &status) != 0) continue;
    // Whoever writes it holds its lock.
    const bool is_left = S_ISREG(status.st_mode) &&
                         was_to_become(std::string_view(name).substr(0, dot),
                                       std::string_view(name).substr(dot + 1), status) &&
                         ::flock(file.get(), LOCK_EX | LOCK_NB) == 0;
    if (is_left) ::unlink(at->path().c_str());
  }
}

AppendedFile::~AppendedFile() {
  if (fd_ >= 0) ::close(fd_);
}

std::string AppendedFile::try_open(const std::string& path) {
  constexpr mode_t kForAll = 0666;  // less the umask
  fd_ = system_calls().open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, kForAll);
  return fd_ >= 0 ? "" : last_error();
}

std::string AppendedFile::try_append(std::string_view bytes) {
  return write_all(fd_, bytes) ? "" : last_error();
}

std::string AppendedFile::try_sync() { return sync_file(fd_) ? "" : last_error(); }

}  // namespace prefopt::detail
