// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <string>

#include "core/mapped_file.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace prefopt::detail {

TEST_CASE("mapped file: one that was cut short is named", "[core]") {
  const testing_support::TempDir dir;
  const std::string path = dir.file("weights"), other = dir.file("other");
  testing_support::write_text(path, std::string(5000, 'a'));
  testing_support::write_text(other, std::string(10, 'b'));
  {
    const auto file = map_file<CheckpointError>(path);
    const auto second = map_file<CheckpointError>(other);
    CHECK(shrunk_file().empty());
    // A file that grows, or another one in its place, leaves what is mapped as it was.
    std::filesystem::resize_file(other, 20);
    CHECK(shrunk_file().empty());
    std::filesystem::resize_file(path, 4999);
    CHECK(shrunk_file() == path + ": expected 5000 bytes, as when it was mapped, got 4999");
    std::filesystem::resize_file(path, 5000);
    CHECK(shrunk_file().empty());
    std::filesystem::remove(path);
    testing_support::write_text(path, "short");
    CHECK(shrunk_file().empty());
    CHECK(file->bytes().front() == 'a');
    std::filesystem::resize_file(other, 3);
    CHECK(shrunk_file() == other + ": expected 10 bytes, as when it was mapped, got 3");
  }
  CHECK(shrunk_file().empty());
}

}  // namespace prefopt::detail
