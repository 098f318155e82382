// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "data/token_cache.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"

using namespace prefopt;
using prefopt::testing_support::TempDir;
namespace fs = std::filesystem;

namespace {

const std::string kRows = R"({"prompt": "a", "chosen": "b", "rejected": "c"})"
                          "\n"
                          R"({"prompt": "aaaa", "chosen": "bbbbbb", "rejected": ""})"
                          "\nnot JSON\n"
                          R"({"prompt": "aaaaaaaaaa", "chosen": "b", "rejected": "b"})"
                          "\n"
                          R"({"prompt": "aaaaaaaaaa", "chosen": "bbbbbb", "rejected": "c"})"
                          "\n";

class CachedRows {
 public:
  CachedRows() {
    write(kRows);
    options.token_cache = dir.file("cache");
    options.max_length = 8;
    options.identical = RowAction::kKeep;
  }
  void write(const std::string& rows) const { std::ofstream(dir.file("rows")) << rows; }
  Dataset load() const { return load_dataset(dir.file("rows"), ByteTokenizer(), options); }
  std::vector<std::string> files() const {
    std::vector<std::string> paths;
    for (const auto& entry : fs::directory_iterator(options.token_cache)) {
      paths.push_back(entry.path().string());
    }
    return paths;
  }

  TempDir dir;
  DataOptions options;
};

void check_equal(const Dataset& a, const Dataset& b) {
  REQUIRE(a.pairs.size() == b.pairs.size());
  for (std::size_t i = 0; i < a.pairs.size(); ++i) {
    CHECK(a.pairs[i].prompt == b.pairs[i].prompt);
    CHECK(a.pairs[i].chosen == b.pairs[i].chosen);
    CHECK(a.pairs[i].rejected == b.pairs[i].rejected);
  }
  CHECK(a.report.rows_read == b.report.rows_read);
  CHECK(a.report.rows_kept == b.report.rows_kept);
  CHECK(a.report.summary() == b.report.summary());
  CHECK(a.report.dropped == b.report.dropped);
  CHECK(a.report.kept_with == b.report.kept_with);
  CHECK(a.report.truncated_lines == b.report.truncated_lines);
}

TEST_CASE("tokens of rows that changed meanwhile are not kept", "[data]") {
  const CachedRows rows;
  const prefopt::detail::TokenCache cache(rows.options.token_cache, rows.dir.file("rows"),
                                          ByteTokenizer(), rows.options, {});
  fs::create_directories(rows.options.token_cache);
  const Dataset dataset = cache.get_or_make([&] {
    rows.write(kRows + kRows);
    DataOptions plain = rows.options;
    plain.token_cache.clear();
    return load_dataset(rows.dir.file("rows"), ByteTokenizer(), plain);
  });
  CHECK(dataset.report.cache_note ==
        "no tokens are kept: " + rows.dir.file("rows") + " changed while it was read");
  CHECK(rows.files().empty());
  CHECK_THROWS_TEXT(prefopt::detail::TokenCache(rows.options.token_cache, rows.dir.path(),
                                                ByteTokenizer(), rows.options, {}),
                    DataError, rows.dir.path() + ": expected a readable file, got Is a directory");
}

}  // namespace

TEST_CASE("tokenized files are kept and found again", "[data]") {
  CachedRows rows;
  const Dataset made = rows.load();
  CHECK(made.report.cache_note.empty());
  CHECK(made.report.rows_kept == 3);
  CHECK_FALSE(made.report.summary().empty());
  REQUIRE(rows.files().size() == 1);
  const Dataset kept = rows.load();
  CHECK(kept.report.cache_note == "tokens are those kept in " + rows.files()[0]);
  check_equal(kept, made);
}

TEST_CASE("what decides tokens decides the key of the cache", "[data]") {
  CachedRows rows;
  rows.load();
  rows.options.max_length = 9;
  CHECK(rows.load().report.cache_note.empty());
  rows.write(kRows + kRows);
  CHECK(rows.load().report.cache_note.empty());
  CHECK(rows.load().report.rows_read == 10);
  CHECK(load_dataset(rows.dir.file("rows"), ByteTokenizer(), rows.options, {.rejected = false})
            .report.cache_note.empty());
  CHECK(rows.files().size() == 4);
  rows.options.end_of_cut = EndOfCut::kMask;
  rows.options.max_completion_length = 4;
  CHECK(rows.load().report.cache_note.empty());
  const Dataset masked = rows.load();
  CHECK_FALSE(masked.report.cache_note.empty());
  CHECK_FALSE(masked.report.cut_note.empty());
  CHECK(masked.pairs.back().chosen_mask == TokenMask{1, 1, 1, 0});
  CHECK(load_dataset(rows.dir.file("rows"), ByteTokenizer(), rows.options, {.context_length = 4})
            .report.cache_note.empty());
  rows.options.eval_fraction = 0.5;
  rows.options.train = "elsewhere";
  CHECK_FALSE(rows.load().report.cache_note.empty());
}

TEST_CASE("a damaged cache is made again", "[data]") {
  CachedRows rows;
  const Dataset made = rows.load();
  const std::string path = rows.files()[0];
  std::string whole;
  {
    std::ifstream file(path, std::ios::binary);
    whole.assign(std::istreambuf_iterator<char>(file), {});
  }
  for (std::size_t size = 0; size < whole.size(); size += 7) {
    std::ofstream(path, std::ios::binary) << whole.substr(0, size);
    const Dataset again = rows.load();
    CHECK(again.report.cache_note == path + " is damaged and was made again");
    check_equal(again, made);
  }
  for (std::size_t at = 0; at < whole.size(); at += 11) {
    std::string flipped = whole;
    flipped[at] ^= 1;
    std::ofstream(path, std::ios::binary) << flipped;
    CHECK(rows.load().report.cache_note == path + " is damaged and was made again");
  }
  CHECK(rows.load().report.cache_note == "tokens are those kept in " + path);
}

TEST_CASE("a cache that cannot be written is done without", "[data]") {
  CachedRows rows;
  std::ofstream(rows.options.token_cache) << "a file where the folder should be";
  const Dataset made = rows.load();
  CHECK(made.report.rows_kept == 3);
  CHECK(made.report.cache_note.starts_with("no tokens are kept in " + rows.options.token_cache));
  CHECK(made.report.cache_note.ends_with(" (Not a directory)"));
  rows.options.unusable = RowAction::kError;
  CHECK_THROWS_AS(rows.load(), DataError);
}

TEST_CASE("several writers leave one whole file", "[data]") {
  CachedRows rows;
  std::vector<Dataset> results(4);
  std::vector<std::thread> writers;
  for (Dataset& result : results) writers.emplace_back([&] { result = rows.load(); });
  for (std::thread& writer : writers) writer.join();
  for (const Dataset& result : results) check_equal(result, results[0]);
  CHECK(rows.files().size() == 1);
  check_equal(rows.load(), results[0]);
}
