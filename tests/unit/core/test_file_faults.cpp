// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/file.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/injected_calls.h"
#include "support/temp_dir.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;
using testing_support::InjectedCalls;
using testing_support::TempDir;

class Umask {
 public:
  explicit Umask(mode_t mask) : before_(::umask(mask)) {}
  ~Umask() { ::umask(before_); }
  Umask(const Umask&) = delete;
  Umask& operator=(const Umask&) = delete;

 private:
  mode_t before_;
};

mode_t mode_of(const std::string& path) {
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  return status.st_mode & 07777;
}

int fail_by(int error) {
  errno = error;
  return -1;
}

bool is_folder(int fd) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 && S_ISDIR(status.st_mode);
}

TEST_CASE("a new file has the rights that the umask leaves, a replaced one keeps its own",
          "[core]") {
  const TempDir dir;
  for (const auto& [mask, expected] : std::vector<std::pair<mode_t, mode_t>>{
           {0077, 0600}, {0027, 0640}, {0022, 0644}, {0002, 0664}}) {
    const Umask umask(mask);
    const std::string path = dir.file("new-" + std::to_string(mask));
    write_file<CheckpointError>(path, "x");
    CHECK(mode_of(path) == expected);
    AppendedFile log;
    CHECK(log.try_open(path + ".log") == "");
    CHECK(mode_of(path + ".log") == expected);
    for (const mode_t own : {0600, 0640, 0664}) {
      REQUIRE(::chmod(path.c_str(), own) == 0);
      write_file<CheckpointError>(path, "y");
      CHECK(mode_of(path) == own);
    }
  }
}

TEST_CASE("what a signal breaks into is no failure", "[core]") {
  const TempDir dir;
  static int interrupts = 0;
  InjectedCalls calls;
  calls->fsync = [](int fd) { return ++interrupts % 3 != 0 ? fail_by(EINTR) : ::fsync(fd); };
  calls->close = [](int fd) {
    ::close(fd);
    return fail_by(EINTR);
  };
  write_file<CheckpointError>(dir.file("a"), "whole");
  CHECK(read_file<CheckpointError>(dir.file("a")) == "whole");
  CHECK(interrupts == 6);  // of the file and of its folder
  AppendedFile log;
  CHECK(log.try_open(dir.file("log")) == "");
  CHECK(log.try_sync() == "");
}

TEST_CASE("a drive that cannot sync a folder is written to all the same", "[core]") {
  const TempDir dir;
  static int error = 0;
  InjectedCalls calls;
  calls->fsync = [](int fd) { return is_folder(fd) ? fail_by(error) : ::fsync(fd); };
  for (const int tolerated : {EINVAL, EACCES, ENOTSUP, ENOSYS}) {
    error = tolerated;
    CHECK(try_write_file(dir.file("a"), "x") == "");
    CHECK(try_move(dir.file("a"), dir.file("b")) == "");
    CHECK(try_make_directory(dir.file("folder-" + std::to_string(tolerated))) == "");
  }
  error = EIO;
  CHECK(try_write_file(dir.file("a"), "x") == "Input/output error");
  CHECK(try_make_directory(dir.file("broken")) == "Input/output error");
  // A file that cannot be synced is another matter.
  calls->fsync = [](int) { return fail_by(EINVAL); };
  CHECK(try_write_file(dir.file("a"), "x") == "Invalid argument");
}

TEST_CASE("the parent of each new folder is synced", "[core]") {
  const TempDir dir;
  static std::vector<std::string> synced;
  synced.clear();
  InjectedCalls calls;
  calls->fsync = [](int fd) {
    synced.push_back(fs::read_symlink("/proc/self/fd/" + std::to_string(fd)).string());
    return 0;
  };
  make_directory<CheckpointError>(dir.file("a/b/c"));
  const std::string root = fs::canonical(dir.path()).string();
  CHECK(synced == std::vector<std::string>{root, root + "/a", root + "/a/b"});
  make_directory<CheckpointError>(dir.file("a/b/c"));
  CHECK(synced.size() == 3);
}

TEST_CASE("where there are no symbolic links a small file takes their place", "[core]") {
  const TempDir dir;
  make_directory<CheckpointError>(dir.file("step-3"));
  static int error = 0;
  InjectedCalls calls;
  calls->symlink = [](const char*, const char*) { return fail_by(error); };
  for (const int no_links : {EPERM, ENOTSUP, ENOSYS}) {
    error = no_links;
    CHECK(try_link("step-2", dir.file("last")) == "");
    CHECK(try_link("step-3", dir.file("last")) == "");
    CHECK(fs::is_regular_file(fs::symlink_status(dir.file("last"))));
    CHECK(link_target(dir.file("last")) == "step-3");
    CHECK(followed(dir.file("last")) == dir.file("step-3"));
    CHECK(followed(dir.file("last/")) == dir.file("step-3"));
    fs::remove(dir.file("last"));
  }
  error = ENOSPC;
  CHECK(try_link("step-3", dir.file("last")) == "No space left on device");
  // Nothing else is taken for a link.
  CHECK(link_target(dir.file("last")).empty());
  for (const std::string other : {"step-3\n", "prefopt link: ../step-3\n", "prefopt link: ..\n",
                                  "prefopt link: \n", "prefopt link: step-3"}) {
    CAPTURE(other);
    std::ofstream(dir.file("other")) << other;
    CHECK(link_target(dir.file("other")).empty());
    CHECK(followed(dir.file("other")) == dir.file("other"));
  }
  CHECK(followed(dir.file("step-3")) == dir.file("step-3"));
  CHECK(followed(dir.file("none")) == dir.file("none"));
}

TEST_CASE("files of killed processes are removed, and nobody else's", "[core]") {
  const TempDir dir;
  // The folder while a file is written: its name is taken as a killed process would leave it.
  static std::vector<std::string> seen;
  seen.clear();
  static std::string folder;
  folder = dir.path();
  {
    InjectedCalls calls;
    calls->write = [](int fd, const void* bytes, std::size_t count) {
      for (const auto& item : fs::directory_iterator(folder)) {
        seen.push_back(item.path().filename().string());
      }
      // Not the file of a living process.
      remove_unfinished_files(folder, [](std::string_view) { return true; });
      return ::write(fd, bytes, count);
    };
    calls->fsync = [](int fd) {
      remove_unfinished_files(folder, [](std::string_view) { return true; });
      return ::fsync(fd);
    };
    calls->close = [](int fd) {
      const int result = ::close(fd);
      remove_unfinished_files(folder, [](std::string_view) { return true; });
      return result;
    };
    calls->rename = [](const char* from, const char* to) {
      remove_unfinished_files(folder, [](std::string_view) { return true; });
      return std::rename(from, to);
    };
    write_file<CheckpointError>(dir.file("config.json"), "x");
  }
  CHECK(read_file<CheckpointError>(dir.file("config.json")) == "x");
  REQUIRE(seen.size() == 1);
  REQUIRE(seen[0].size() == std::string("config.json.XXXXXX").size());
  const auto put = [&](const std::string& name, mode_t mode) {
    std::ofstream(dir.file(name)) << "left";
    REQUIRE(::chmod(dir.file(name).c_str(), mode) == 0);
  };
  put(seen[0], 0644);
  const auto age = [&](const std::string& name, std::chrono::hours by) {
    fs::last_write_time(dir.file(name), fs::last_write_time(dir.file(name)) - by);
  };
  put("config.json.aB3xYz", 0600);  // of the first version
  age("config.json.aB3xYz", std::chrono::hours(25));
  put("config.json.gH7xYz", 0600);  // which may still write
  age("config.json.gH7xYz", std::chrono::hours(23));
  put("other.json.aB3xYz", 0600);
  age("other.json.aB3xYz", std::chrono::hours(25));
  for (const auto* name : {"config.json.backup", "config.json.Backup", "config.json.240101",
                           "config.json.before", "config.json.aB3xY", "config.json."}) {
    put(name, 0600);
    age(name, std::chrono::hours(25));
  }
  put("config.json.newRun", 0644);
  age("config.json.newRun", std::chrono::hours(25));
  fs::create_directory(dir.file("config.json.cD4xYz"));
  put("config.json.eF5gHi", 0600);
  age("config.json.eF5gHi", std::chrono::hours(25));
  const int held = ::open(dir.file("config.json.eF5gHi").c_str(), O_RDWR);
  REQUIRE(::flock(held, LOCK_EX) == 0);
  std::size_t before = 0;
  for ([[maybe_unused]] const auto& item : fs::directory_iterator(dir.path())) ++before;
  remove_unfinished_files(dir.path(), [](std::string_view name) { return name == "config.json"; });
  CHECK_FALSE(fs::exists(dir.file(seen[0])));
  CHECK_FALSE(fs::exists(dir.file("config.json.aB3xYz")));
  std::size_t after = 0;
  for ([[maybe_unused]] const auto& item : fs::directory_iterator(dir.path())) ++after;
  CHECK(after == before - 2);
  ::close(held);
  remove_unfinished_files(dir.file("none"), [](std::string_view) { return true; });
}

}  // namespace
}  // namespace prefopt::detail
