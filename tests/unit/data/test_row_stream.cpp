// SPDX-License-Identifier: Apache-2.0
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "data/row_stream.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"

using namespace prefopt;
using prefopt::detail::DataPart;
using prefopt::detail::RowStream;
using prefopt::detail::RowStreamOptions;
using prefopt::testing_support::put;
using prefopt::testing_support::TempDir;

namespace {

/// Writes lines FIRST, FIRST + 1, …
void write_numbers(const std::string& path, int first, int count) {
  std::ofstream file(path);
  for (int i = first; i < first + count; ++i) file << i << "\n";
}

std::vector<int> take(RowStream& stream, int count) {
  std::vector<int> rows;
  for (int i = 0; i < count; ++i) rows.push_back(std::stoi(stream.next().row.text));
  return rows;
}

/// Two parts, of 20 and of 10 rows, the first in two files.
class Numbers {
 public:
  explicit Numbers(double first = 1, double second = 1) : weights_{first, second} {
    write_numbers(dir_.file("a"), 0, 12);
    write_numbers(dir_.file("b"), 12, 8);
    write_numbers(dir_.file("c"), 100, 10);
  }

  RowStream stream(const RowStreamOptions& options) const {
    return RowStream(
        {{{dir_.file("a"), dir_.file("b")}, weights_[0]}, {{dir_.file("c")}, weights_[1]}},
        options);
  }
  std::string file(const std::string& name) const { return dir_.file(name); }

 private:
  TempDir dir_;
  double weights_[2];
};

}  // namespace

TEST_CASE("an epoch of a stream has each row once, in its own order", "[data]") {
  const Numbers numbers;
  for (const std::int64_t buffer : {1, 3, 30, 1000}) {
    RowStream stream = numbers.stream({.buffer = buffer, .seed = 3});
    const std::vector<int> first = take(stream, 30);
    CHECK(stream.epoch() == 0);
    const std::vector<int> second = take(stream, 30);
    CHECK(stream.epoch() == 1);
    CHECK(first != second);
    for (std::vector<int> epoch : {first, second}) {
      std::sort(epoch.begin(), epoch.end());
      CHECK(std::unique(epoch.begin(), epoch.end()) == epoch.end());
      CHECK(epoch.front() == 0);
      CHECK(epoch.back() == 109);
    }
    RowStream again = numbers.stream({.buffer = buffer, .seed = 3});
    CHECK(take(again, 30) == first);
    RowStream other = numbers.stream({.buffer = buffer, .seed = 4});
    CHECK(take(other, 30) != first);
  }
}

TEST_CASE("a marked place is the state that was there", "[data]") {
  const Numbers numbers(1, 1.5);
  for (const std::int64_t buffer : {1, 4, 30, 1000}) {
    RowStream stream = numbers.stream({.buffer = buffer, .seed = 3});
    for (const int count : {0, 1, 7, 26, 100, 3}) {
      stream.mark();
      const std::vector<std::int64_t> before = stream.state();
      const std::vector<int> rows = take(stream, count);
      CHECK(stream.state_at_mark() == before);
      if (count == 26) stream.is_at_epoch_end();  // reads ahead
      CHECK(stream.state_at_mark() == before);
      stream.load(before);
      stream.mark();
      CHECK(take(stream, count) == rows);
      CHECK(stream.state_at_mark() == before);
    }
  }
}

TEST_CASE("a row waits in the buffer, and none comes before it was read", "[data]") {
  const TempDir dir;
  write_numbers(dir.file("a"), 0, 1000);
  RowStream stream({{{dir.file("a")}, 1}}, {.buffer = 10, .seed = 1});
  const std::vector<int> rows = take(stream, 1000);
  int moved = 0;
  for (int i = 0; i < 1000; ++i) {
    CHECK(rows[static_cast<std::size_t>(i)] < i + 10);
    moved += rows[static_cast<std::size_t>(i)] != i ? 1 : 0;
  }
  CHECK(moved > 800);
}

TEST_CASE("a stream that is not shuffled is its files, part by part", "[data]") {
  const Numbers numbers(1, 2);
  RowStream stream = numbers.stream({.buffer = 7, .seed = 3, .shuffle = false});
  std::vector<int> expected;
  for (int i = 0; i < 20; ++i) expected.push_back(i);
  for (int pass = 0; pass < 2; ++pass) {
    for (int i = 100; i < 110; ++i) expected.push_back(i);
  }
  CHECK(take(stream, 40) == expected);
  CHECK(take(stream, 3) == std::vector<int>{0, 1, 2});
}

TEST_CASE("a weight says how often an epoch has the rows of a part", "[data]") {
  for (const double weight : {2.0, 0.25, 1.5, 3.3}) {
    const Numbers numbers(1, weight);
    RowStream stream = numbers.stream({.buffer = 5, .seed = 9});
    constexpr std::int64_t kEpochs = 40;
    std::map<int, std::map<std::int64_t, int>> times;  // of a row, by epoch
    while (true) {
      const int row = std::stoi(stream.next().row.text);
      if (stream.epoch() == kEpochs) break;
      ++times[row][stream.epoch()];
    }
    for (auto& [row, by_epoch] : times) {
      int all = 0;
      const double wanted = row < 100 ? 1 : weight;
      for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch) {
        all += by_epoch[epoch];
        CHECK(std::abs(by_epoch[epoch] - wanted) < 1);
      }
      // Over the epochs each row has its weight, to one.
      CHECK(std::abs(all - wanted * kEpochs) < 1.0 + 1e-9);
    }
    CHECK(times.size() == 30);
    // An epoch's share is even as well.
    for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch) {
      int all = 0;
      for (int row = 100; row < 110; ++row) all += times[row][epoch];
      CHECK(std::abs(all - 10 * weight) <= 2);
    }
  }
}

TEST_CASE("a stream resumes in any place as if it had not stopped", "[data]") {
  for (const auto& [first, second] : {std::pair{1.0, 1.0}, {1.5, 0.4}}) {
    const Numbers numbers(first, second);
    const RowStreamOptions options{.buffer = 6, .seed = 5};
    RowStream whole = numbers.stream(options);
    const std::vector<int> rows = take(whole, 120);
    for (int stop = 0; stop <= 90; ++stop) {
      RowStream before = numbers.stream(options);
      take(before, stop);
      RowStream after = numbers.stream(options);
      take(after, 7);  // whatever it has read
      after.load(before.state());
      CHECK(after.state() == before.state());
      CHECK(take(after, 30) == std::vector<int>(rows.begin() + stop, rows.begin() + stop + 30));
    }
  }
}

TEST_CASE("a state that is none, and rows that have changed, are refused", "[data]") {
  const Numbers numbers;
  RowStream stream = numbers.stream({.buffer = 6, .seed = 5});
  take(stream, 3);
  const std::vector<std::int64_t> state = stream.state();
  const std::string expected = "expected the place of a stream in the files of data.train, got ";
  const auto refused = [&](std::vector<std::int64_t> bad, const std::string& got) {
    RowStream other = numbers.stream({.buffer = 6, .seed = 5});
    CHECK_THROWS_TEXT(other.load(bad), CheckpointError, expected + got);
  };
  refused({}, "other numbers");
  refused({1, 2, 3}, "other numbers");
  auto bad = state;
  bad.push_back(1);
  refused(bad, "other numbers");
  bad = state;
  bad[0] = -1;
  refused(bad, "other numbers");
  bad = state;
  bad.resize(bad.size() + 300, 0);
  refused(bad, "other numbers");
  bad = state;
  bad[5] = 9;  // file of the first part
  refused(bad, "a file that is not there");
  bad = state;
  bad[bad.size() - 2] = 9;
  refused(bad, "a file that is not there");
  bad = state;
  bad[bad.size() - 1] = 50;
  bad[bad.size() - 2] = bad[bad.size() - 3] = 0;
  refused(bad, "no row 51 of " + numbers.file("a"));
  bad = state;
  ++bad[3];
  refused(bad, "rows that are others now");

  const std::string before = stream.fingerprint();
  CHECK(numbers.stream({.buffer = 6, .seed = 5}).fingerprint() == before);
  CHECK(numbers.stream({.buffer = 7, .seed = 5}).fingerprint() != before);
  CHECK(Numbers(1, 2).stream({.buffer = 6, .seed = 5}).fingerprint() != before);
  write_numbers(numbers.file("c"), 200, 10);
  CHECK(numbers.stream({.buffer = 6, .seed = 5}).fingerprint() != before);
}

TEST_CASE("a stream of few rows of a small weight has epochs without rows", "[data]") {
  const TempDir dir;
  write_numbers(dir.file("a"), 0, 4);
  RowStream stream({{{dir.file("a")}, 0.01}}, {.buffer = 2, .seed = 1});
  std::vector<int> counts(4);
  for (const int row : take(stream, 8)) ++counts[static_cast<std::size_t>(row)];
  // Each row is in one of 100 epochs.
  CHECK(counts == std::vector<int>{2, 2, 2, 2});
  CHECK(stream.epoch() >= 100);
  CHECK(stream.epoch() < 200);
}

TEST_CASE("files of a stream have rows, and can be read again", "[data]") {
  const TempDir dir;
  put(dir.file("a"), "\n\n");
  RowStream stream({{{dir.file("a")}, 1}}, {.buffer = 2});
  CHECK_THROWS_TEXT(stream.next(), DataError,
                    dir.file("a") + ": expected at least one row in 1000 epochs, got none");
  CHECK_THROWS_TEXT(
      RowStream({{{"/dev/null"}, 1}}, {}), DataError,
      "/dev/null: expected a regular file, which a stream reads again each epoch, got "
      "another");
}

namespace {

std::int64_t resident_bytes() {
  std::int64_t all = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

void write_rows(const std::string& path, std::int64_t count) {
  std::ofstream file(path);
  const std::string text(150, 'x');
  for (std::int64_t i = 0; i < count; ++i) {
    file << R"({"prompt": "row )" << i << R"(", "chosen": ")" << text << "\"}\n";
  }
}

/// Returns the most memory that a pass over `count` rows takes.
std::int64_t memory_of_pass(std::int64_t count, std::int64_t buffer) {
  const TempDir dir;
  write_rows(dir.file("rows"), count);
  RowStream stream({{{dir.file("rows")}, 1}}, {.buffer = buffer, .seed = 1});
  ::malloc_trim(0);  // what other tests have freed would be taken again
  const std::int64_t before = resident_bytes();
  std::int64_t most = 0;
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    sum += stream.next().index;
    if (i % 5000 == 0) most = std::max(most, resident_bytes() - before);
  }
  CHECK(sum == count * (count - 1) / 2);
  return most;
}

}  // namespace

TEST_CASE("a stream holds its buffer and a block, however many rows there are", "[data]") {
  constexpr std::int64_t kMiB = std::int64_t{1} << 20;
  CHECK(memory_of_pass(60'000, 1000) < 4 * kMiB);
  // All rows at once take what they weigh: the measure can see it.
  CHECK(memory_of_pass(60'000, 60'000) > 10 * kMiB);
}

TEST_CASE("ten million rows stream through a buffer of ten thousand", "[data][.long]") {
  CHECK(memory_of_pass(10'000'000, 10'000) < std::int64_t{32} << 20);
}
