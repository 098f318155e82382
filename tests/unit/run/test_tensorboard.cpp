// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <protozero/pbf_reader.hpp>
#include <string>
#include <vector>

#include "core/crc32c.h"
#include "core/file.h"
#include "prefopt/error.h"
#include "run/tensorboard.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"
#include "support/tensorboard.h"

namespace prefopt::detail {
namespace {

using testing_support::read_events;
using testing_support::TempDir;

std::string hex(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

std::string bytes_of(const EventFile& file) { return read_file<DataError>(file.path()); }

TEST_CASE("CRC-32C is that of RFC 3720", "[core]") {
  CHECK(crc32c("") == 0);
  CHECK(crc32c("123456789") == 0xe3069283);
  CHECK(crc32c(std::string(32, '\0')) == 0x8a9136aa);
  CHECK(crc32c(std::string(32, '\xff')) == 0x62a8ab43);
  std::string ascending, descending;
  for (int i = 0; i < 32; ++i) {
    ascending += static_cast<char>(i);
    descending += static_cast<char>(31 - i);
  }
  CHECK(crc32c(ascending) == 0x46dd794e);
  CHECK(crc32c(descending) == 0x113fdb5c);
}

// The same events by the record writer and the protocol buffers of the package tensorboard 2.21.0.
TEST_CASE("event files are TensorBoard's, byte for byte", "[run]") {
  const TempDir folder;
  EventFile file(folder.file("tb"), 1700000000.5);
  std::string expected =
      "1800000000000000a37f4b220900002040fc54d9411a0d627261696e2e4576656e743a322b353110";
  CHECK(hex(bytes_of(file)) == expected);

  file.add_scalars(7, 1700000001.25, {{"train/loss", 0.25}, {"train/rewards/margins", -1.5}});
  expected +=
      "3e00000000000000d9d240e70900005040fc54d94110072a310a110a0a747261696e2f6c6f7373150000803e0a1c"
      "0a15747261696e2f726577617264732f6d617267696e73150000c0bfc30bc1b0";
  CHECK(hex(bytes_of(file)) == expected);

  file.add_text(300, 2, "config", "beta ½");
  expected +=
      "33000000000000000ca7205609000000000000004010ac022a250a230a06636f6e666967420d0807120042076265"
      "746120c2bd4a0a0a060a04746578742002aa69a571";
  CHECK(hex(bytes_of(file)) == expected);

  file.add_restart(8, 3);
  expected += "0f000000000000006d532b0909000000000000084010083a02080185c347cd";
  CHECK(hex(bytes_of(file)) == expected);
}

TEST_CASE("event files read back as what was written", "[run]") {
  const TempDir folder;
  EventFile file(folder.path(), 10);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  file.add_scalars(1, 11, {{"a", 0.1}, {"b", nan}, {"c", 1e300}});
  file.add_scalars(std::int64_t{1} << 40, 12, {});
  const auto events = read_events(file.path());
  REQUIRE(events.size() == 3);
  CHECK(events[0].file_version == "brain.Event:2");
  CHECK(events[0].wall_time == 10);
  CHECK(events[1].step == 1);
  CHECK(events[1].wall_time == 11);
  CHECK(events[1].scalars.at("a") == 0.1F);
  CHECK(std::isnan(events[1].scalars.at("b")));
  CHECK(std::isinf(events[1].scalars.at("c")));
  CHECK(events[2].step == std::int64_t{1} << 40);
  CHECK(events[2].scalars.empty());
}

TEST_CASE("the reader of these tests sees a damaged record", "[run]") {
  const TempDir folder;
  EventFile file(folder.path(), 10);
  file.add_scalars(1, 11, {{"a", 1}});
  const std::string good = bytes_of(file);
  for (const std::size_t at : {std::size_t{0}, std::size_t{9}, std::size_t{14}, good.size() - 1}) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    write_file<DataError>(folder.file("bad"), bad);
    CHECK_THROWS_AS(read_events(folder.file("bad")), std::runtime_error);
  }
  write_file<DataError>(folder.file("bad"), good.substr(0, good.size() - 1));
  CHECK_THROWS_AS(read_events(folder.file("bad")), std::runtime_error);
}

TEST_CASE("each process has its own event file, in order of time", "[run]") {
  const TempDir folder;
  const EventFile first(folder.path(), 999999999);
  const EventFile second(folder.path(), 1700000000);
  const EventFile third(folder.path(), 1700000000);
  CHECK(first.path() < second.path());
  CHECK(second.path() != third.path());
  CHECK(second.path().find("/events.out.tfevents.1700000000.") != std::string::npos);
}

TEST_CASE("an event file that cannot be written is an error", "[run]") {
  const TempDir folder;
  write_file<DataError>(folder.file("tb"), "a file");
  CHECK_THROWS_TEXT(EventFile(folder.file("tb"), 10), CheckpointError,
                    folder.file("tb") + ": expected to make this folder, got a file of that name");
}

}  // namespace
}  // namespace prefopt::detail
