// SPDX-License-Identifier: Apache-2.0
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "core/file.h"
#include "core/folder_lock.h"
#include "core/hash.h"
#include "core/text.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/child.h"
#include "support/errors.h"
#include "support/temp_dir.h"

namespace prefopt::detail {
namespace {

std::ptrdiff_t entries(const std::string& folder) {
  return std::distance(std::filesystem::directory_iterator(folder), {});
}

TEST_CASE("a lock is one holder's until it lets go", "[core]") {
  const testing_support::TempDir dir;
  {
    const FolderLock first(dir.file("lock"));
    CHECK(first.is_ours());
    const FolderLock second(dir.file("lock"));
    CHECK_FALSE(second.is_ours());
    CHECK(second.holder() == "process " + std::to_string(getpid()));
    CHECK(FolderLock(dir.file("other")).is_ours());
  }
  CHECK(FolderLock(dir.file("lock")).is_ours());
  CHECK_THROWS_TEXT(FolderLock(dir.file("none/lock")), CheckpointError,
                    dir.file("none/lock") +
                        ": expected a file to lock this folder by, got No such file or directory");
}

/// A process that holds a lock until it is killed, at the latest at the end of the scope.
class Holder {
 public:
  explicit Holder(const std::string& path) {
    int ready[2];
    REQUIRE(::pipe(ready) == 0);
    child_ = testing_support::start_child([&] {
      const FolderLock lock(path);
      if (lock.is_ours() && ::write(ready[1], "x", 1) == 1) ::pause();
    });
    ::close(ready[1]);
    char byte = 0;
    has_begun_ = ::read(ready[0], &byte, 1) == 1;
    ::close(ready[0]);
  }
  ~Holder() { kill(); }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;

  bool has_begun() const { return has_begun_; }
  pid_t id() const { return child_; }
  void kill() {
    if (child_ <= 0) return;
    ::kill(child_, SIGKILL);
    ::waitpid(std::exchange(child_, -1), nullptr, 0);
  }

 private:
  pid_t child_ = -1;
  bool has_begun_ = false;
};

TEST_CASE("a lock ends with its process, however that ends", "[core]") {
  const testing_support::TempDir dir;
  Holder holder(dir.file("lock"));
  REQUIRE(holder.has_begun());
  CHECK(FolderLock(dir.file("lock")).holder() == "process " + std::to_string(holder.id()));
  // The text is for people, and anybody may have written it.
  std::ofstream(dir.file("lock")) << "<b>\n";
  CHECK(FolderLock(dir.file("lock")).holder() == "another process");
  holder.kill();
  CHECK(FolderLock(dir.file("lock")).is_ours());
}

TEST_CASE("what may only be read locks as well", "[core]") {
  const testing_support::TempDir dir;
  // A folder: nobody may write to one, root neither.
  std::filesystem::create_directory(dir.file("lock"));
  const FolderLock first(dir.file("lock"));
  CHECK(first.is_ours());
  CHECK(FolderLock(dir.file("lock")).holder() == "another process");
}

TEST_CASE("files are written whole or not at all", "[core]") {
  const testing_support::TempDir dir;
  const std::string path = dir.file("a");
  const std::string bytes("x\0y\n", 4);
  write_file<CheckpointError>(path, bytes);
  CHECK(read_file<CheckpointError>(path) == bytes);
  write_file<CheckpointError>(path, "new");
  CHECK(read_file<CheckpointError>(path) == "new");
  CHECK(entries(dir.path()) == 1);

  const std::string missing = dir.file("none/b");
  CHECK_THROWS_TEXT(read_file<DataError>(missing), DataError,
                    missing + ": expected a readable file, got No such file or directory");
  CHECK_THROWS_TEXT(read_file<DataError>(dir.path()), DataError,
                    dir.path() + ": expected a readable file, got a folder");
  CHECK_THROWS_TEXT(write_file<CheckpointError>(missing, "abc"), CheckpointError,
                    missing + ": expected to write 3 bytes, got No such file or directory");
  // A size that a file only claims to have takes no memory.
  const std::string sparse = dir.file("sparse");
  write_file<CheckpointError>(sparse, "x");
  std::filesystem::resize_file(sparse, std::uintmax_t{1} << 40);
  CHECK_THROWS_TEXT(read_file<DataError>(sparse), DataError,
                    sparse +
                        ": expected a readable file, got 1099511627776 bytes or more, where "
                        "4294967296 are the limit");
  std::filesystem::remove(sparse);
  // A target that cannot be replaced keeps what it held and leaves nothing next to it.
  std::filesystem::create_directory(dir.file("folder"));
  CHECK_THROWS_TEXT(write_file<CheckpointError>(dir.file("folder"), "abc"), CheckpointError,
                    dir.file("folder") + ": expected to write 3 bytes, got Is a directory");
  CHECK(entries(dir.path()) == 2);
}

TEST_CASE("folders, moves and links", "[core]") {
  namespace fs = std::filesystem;
  const testing_support::TempDir dir;
  make_directory<CheckpointError>(dir.file("a/b/c"));
  make_directory<CheckpointError>(dir.file("a/b/c/"));
  CHECK(fs::is_directory(dir.file("a/b/c")));
  write_file<CheckpointError>(dir.file("file"), "x");
  CHECK_THROWS_TEXT(make_directory<CheckpointError>(dir.file("file")), CheckpointError,
                    dir.file("file") + ": expected to make this folder, got a file of that name");
  CHECK_THROWS_TEXT(make_directory<CheckpointError>(dir.file("file/inner")), CheckpointError,
                    dir.file("file/inner") + ": expected to make this folder, got Not a directory");

  CHECK(try_link("a", dir.file("link")) == "");
  CHECK(try_link("a/b", dir.file("link")) == "");  // in place of the other
  CHECK(fs::read_symlink(dir.file("link")) == "a/b");
  CHECK(try_move(dir.file("a"), dir.file("z")) == "");
  CHECK(fs::is_directory(dir.file("z/b/c")));
  CHECK(try_move(dir.file("a"), dir.file("y")) == "No such file or directory");
  CHECK(entries(dir.path()) == 3);

  AppendedFile log;
  CHECK(log.try_open(dir.file("none/log")) == "No such file or directory");
  CHECK(log.try_open(dir.file("log")) == "");
  CHECK(log.try_append("one\n") == "");
  CHECK(log.try_append("two\n") == "");
  CHECK(log.try_sync() == "");
  CHECK(read_file<DataError>(dir.file("log")) == "one\ntwo\n");
}

TEST_CASE("checksums are those of ISO 3309", "[core]") {
  CHECK(crc32_of("") == "00000000");
  CHECK(crc32_of("123456789") == "cbf43926");  // the standard's check value
}

TEST_CASE("content hashes depend on bytes, not on how they were fed", "[core]") {
  // FIPS 180 test vector; one block is a plain SHA-1.
  ContentHash abc;
  abc.update("abc");
  CHECK(abc.hex() == "a9993e364706816aba3e25717850c26c9cd0d89d");

  const std::string big(std::size_t{5} << 19, 'q');
  ContentHash whole, pieces;
  whole.update(big);
  for (std::size_t at = 0; at < big.size(); at += 12345) {
    pieces.update(std::string_view(big).substr(at, 12345));
  }
  CHECK(whole.hex() == pieces.hex());
  ContentHash other;
  other.update(big);
  other.update("!");
  CHECK(other.hex() != whole.hex());
}

TEST_CASE("the nearest name", "[core]") {
  const std::vector<std::string_view> names{"beta", "label_smoothing", "eta", "reduction"};
  CHECK(nearest("bta", names) == "beta");
  CHECK(nearest("label_smothing", names) == "label_smoothing");
  CHECK(nearest("label", names) == "label_smoothing");
  CHECK(nearest("qqqqqq", names).empty());
  CHECK(did_you_mean("reducton", names) == "; did you mean 'reduction'?");
  CHECK(did_you_mean("x", names).empty());
}

}  // namespace
}  // namespace prefopt::detail
