// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "data/lines.h"
#include "data/row_file.h"
#include "data/row_layout.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/memory_limit.h"
#include "support/temp_dir.h"

using namespace prefopt;
using prefopt::detail::FileRow;
using prefopt::detail::SortedJson;
using prefopt::testing_support::bytes_of;
using prefopt::testing_support::put;
using prefopt::testing_support::TempDir;

namespace {

std::string data(const std::string& name) { return PREFOPT_TEST_DATA_DIR "/arrow/" + name; }

}  // namespace

#ifdef PREFOPT_HAS_ARROW

namespace {

std::vector<FileRow> file_rows(const std::string& path) {
  std::vector<FileRow> rows;
  prefopt::detail::read_rows(path, [&](std::int64_t number, std::string_view text) {
    rows.push_back({number, std::string(text)});
    return true;
  });
  return rows;
}

/// The parsed row with the columns of `like` alone.
SortedJson parsed(const std::string& text, const SortedJson& like) {
  SortedJson row = prefopt::detail::parse_line_json(text, "row");
  for (auto item = row.begin(); item != row.end();) {
    item = like.contains(item.key()) ? std::next(item) : row.erase(item);
  }
  return row;
}

Dataset loaded(const std::string& path, DataOptions options = {}) {
  return load_dataset(path, ByteTokenizer(), options);
}

}  // namespace

TEST_CASE("rows of Parquet and Arrow files are those of the equal JSON lines", "[data]") {
  const std::vector<FileRow> lines = file_rows(data("rows.jsonl"));
  REQUIRE(lines.size() == 16);
  for (const char* name :
       {"none.parquet", "snappy.parquet", "gzip.parquet", "zstd.parquet", "lz4.parquet",
        "groups.parquet", "no-dictionary.parquet", "encodings.parquet", "plain.arrow", "zstd.arrow",
        "stream.arrows", "views.arrow", "feather.feather"}) {
    INFO(name);
    const std::vector<FileRow> rows = file_rows(data(name));
    REQUIRE(rows.size() == lines.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      INFO("row " << i + 1 << ": " << rows[i].text);
      CHECK(rows[i].number == static_cast<std::int64_t>(i + 1));
      const SortedJson row = SortedJson::parse(rows[i].text);
      CHECK((row == parsed(lines[i].text, row)));
      CHECK(row.size() >= 2);
      // Numbers are of the kind that Python's json gives them: ids have to be whole ones.
      CHECK(row.dump() == parsed(lines[i].text, row).dump());
    }
  }
}

TEST_CASE("rows can be passed over in any part of a file", "[data]") {
  for (const char* name : {"groups.parquet", "plain.arrow", "stream.arrows", "rows.jsonl"}) {
    INFO(name);
    const std::vector<FileRow> all = file_rows(data(name));
    for (std::int64_t first = 0; first <= 16; ++first) {
      for (const std::int64_t more : {0, 1, 4, 5, 6, 11, 30}) {
        const auto file = prefopt::detail::open_rows(data(name));
        file->skip(first);
        FileRow row;
        if (first < 16) {
          REQUIRE(file->next(row));
          CHECK(row.number == first + 1);
          CHECK((row.text == all[static_cast<std::size_t>(first)].text));
        }
        file->skip(more);
        const std::int64_t at = first + 1 + more;
        CHECK(file->next(row) == (at < 16));
        if (at < 16) CHECK((row.text == all[static_cast<std::size_t>(at)].text));
      }
    }
  }
}

TEST_CASE("values of types without JSON are marked, and numbers as Python writes them", "[data]") {
  const auto rows = file_rows(data("types.parquet"));
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].text ==
        R"json({"prompt":"What is the sky?","chosen":"blue","rejected":"a bus",)json"
        R"json("time":{"\u0000type: timestamp[us]":null},)json"
        R"json("date":{"\u0000type: date32[day]":null},)json"
        R"json("price":{"\u0000type: decimal128(3, 2)":null},)json"
        R"json("image":{"\u0000type: binary":"bytes"},)json"
        R"json("hash":{"\u0000type: fixed_size_binary[2]":"bytes"},"real":NaN,)json"
        R"json("ages":{"\u0000type: map<int8, string ('ages')>":"bytes"}})json");
  CHECK(rows[1].text ==
        R"json({"prompt":"And the sea?","chosen":"wide","rejected":"a box","time":null,)json"
        R"json("date":null,"price":null,"image":"text",)json"
        R"json("hash":{"\u0000type: fixed_size_binary[2]":"bytes"},"real":Infinity,)json"
        R"json("ages":{"\u0000type: map<int8, string ('ages')>":"bytes"}})json");
}

TEST_CASE("a column of a type that is not read is an error where it is read", "[data]") {
  const std::string path = data("types.parquet");
  CHECK_THROWS_TEXT(loaded(path), DataError,
                    path +
                        ":1: expected every column of a prompt to be read, got 'image', which "
                        "nothing reads; name what it is in data.columns, or leave it out with "
                        "data.unused = 'note'");
  const Dataset dataset = loaded(path, {.unused = UnusedColumns::kNote});
  CHECK(dataset.pairs.size() == 2);
  CHECK(dataset.report.dropped.empty());
  // Bytes may be a part of the prompt; of a time nobody asks.
  CHECK(dataset.report.unread.contains("image"));
  CHECK_FALSE(dataset.report.unread.contains("time"));

  const std::string hint =
      ", a type that is not read; write the column as text or numbers, or name another one in "
      "data.columns";
  CHECK_THROWS_TEXT(
      loaded(path, {.columns = R"({"prompt": "time"})", .unused = UnusedColumns::kNote}),
      ConfigError, path + ":1: expected 'time' to be text, got timestamp[us]" + hint);
  CHECK_THROWS_TEXT(
      load_dataset(path, ByteTokenizer(),
                   {.columns = R"({"margin": "price"})", .unused = UnusedColumns::kNote},
                   {.columns = {Column::kMargin}}),
      ConfigError, path + ":1: expected 'price' to be a number, got decimal128(3, 2)" + hint);
  // Of bytes that are no text only the row is at fault.
  const Dataset of_bytes =
      loaded(path, {.columns = R"({"prompt": "image"})", .unused = UnusedColumns::kNote});
  CHECK(of_bytes.lines == std::vector<std::int64_t>{2});
}

TEST_CASE("damaged Parquet and Arrow files are named", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("rows");
  const auto refusal = [&](const std::string& file) {
    const testing_support::MemoryLimit limit;
    try {
      file_rows(file);
    } catch (const DataError& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  SECTION("a page") {
    const std::string bad = data("bad-page.parquet");
    std::int64_t seen = 0;
    std::string text;
    try {
      prefopt::detail::read_rows(bad, [&](std::int64_t number, std::string_view) {
        seen = number;
        return true;
      });
    } catch (const DataError& error) {
      text = error.what();
    }
    CHECK(seen == 10);
    CHECK(text.starts_with(bad + ":11: expected a whole Parquet file, got '"));
    CHECK(text.ends_with("' in column 'chosen' of row group 1"));
  }
  SECTION("columns of one name") {
    CHECK(refusal(data("twice.parquet")) ==
          data("twice.parquet") + ": expected columns of different names, got 'prompt' twice");
    CHECK(refusal(data("twice-inside.arrow")) ==
          data("twice-inside.arrow") +
              ": expected fields in 'messages.item' of different names, got 'content' twice");
  }
  SECTION("no rows") { CHECK(file_rows(data("no-rows.parquet")).empty()); }
  SECTION("what begins as one") {
    for (const std::string& bytes :
         {std::string("PAR1"), std::string("PAR1\x15\x04PAR1"), "PAR1" + std::string(40, '\xFF')}) {
      put(path, bytes);
      CHECK(refusal(path).starts_with(path + ": expected a whole Parquet file, got '"));
    }
    for (const std::string& bytes : {std::string("ARROW1"), "ARROW1" + std::string(40, '\x7F'),
                                     std::string(4, '\xFF') + "\x10"}) {
      put(path, bytes);
      CHECK(refusal(path).starts_with(path + ": expected a whole Arrow file, got '"));
    }
  }
  SECTION("files that are cut off") {
    for (const char* name : {"snappy.parquet", "zstd.arrow", "stream.arrows"}) {
      const std::string whole = bytes_of(data(name));
      const bool is_stream = std::string_view(name).starts_with("stream");
      for (std::size_t size = 8; size < whole.size(); size += whole.size() / 23) {
        INFO(name << " of " << size << " bytes");
        put(path, whole.substr(0, size));
        const std::string text = refusal(path);
        // A stream may end after any of its batches.
        CHECK((text.starts_with(path) || (is_stream && text == "none")));
      }
    }
  }
  SECTION("in gzip") {
    put(path, bytes_of(data("snappy.parquet")));
    REQUIRE(std::system(("gzip -k " + path).c_str()) == 0);
    CHECK(refusal(path + ".gz") ==
          path +
              ".gz: expected JSON lines or a JSON array in gzip, got a Parquet file; unpack it, as "
              "its columns are packed anyway");
  }
}

#else

TEST_CASE("a build without Arrow says how Parquet and Arrow files are read", "[data]") {
  const std::pair<const char*, const char*> files[] = {{"snappy.parquet", "a Parquet file"},
                                                       {"plain.arrow", "an Arrow file"},
                                                       {"stream.arrows", "an Arrow stream"}};
  for (const auto& [name, kind] : files) {
    CHECK_THROWS_TEXT(
        prefopt::detail::open_rows(data(name)), DataError,
        data(name) + ": expected JSON lines or a JSON array, got " + kind +
            ", and this prefopt was built without Arrow; build it with -DPREFOPT_WITH_ARROW=ON, or "
            "write its rows as JSON lines, as pandas' to_json(orient='records', lines=True) does");
  }
}

#endif
