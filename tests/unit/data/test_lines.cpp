// SPDX-License-Identifier: Apache-2.0
#include <zlib.h>

#include <algorithm>
#include <fstream>
#include <utility>

#include "data/lines.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"

using namespace prefopt;
using prefopt::testing_support::bytes_of;
using prefopt::testing_support::TempDir;
using Lines = std::vector<std::pair<std::int64_t, std::string>>;

namespace {

void write_plain(const std::string& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(file.good());
}

// "wb" begins a gzip file, "ab" adds a member to it.
void write_gzip(const std::string& path, std::string_view bytes, const char* mode = "wb") {
  gzFile file = gzopen(path.c_str(), mode);
  REQUIRE(file != nullptr);
  CHECK(gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size())) ==
        static_cast<int>(bytes.size()));
  CHECK(gzclose(file) == Z_OK);
}

Lines read_all(const std::string& path) {
  Lines lines;
  for_each_line(path, [&](std::int64_t number, std::string_view text) {
    lines.emplace_back(number, std::string(text));
  });
  return lines;
}

}  // namespace

TEST_CASE("lines are the same however a file ends, marks and packs them", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("rows");
  const Lines expected = {{1, "a b"}, {4, "c"}};

  SECTION("line feeds") { write_plain(path, "a b\n\n \t\nc\n"); }
  SECTION("no line feed at the end") { write_plain(path, "a b\n\n\nc"); }
  SECTION("CRLF") { write_plain(path, "a b\r\n\r\n  \r\nc\r\n"); }
  SECTION("byte order mark") {
    write_plain(path,
                "\xEF\xBB\xBF"
                "a b\n\n\nc\n");
  }
  SECTION("gzip, whatever the name") { write_gzip(path, "a b\n\n\nc\n"); }
  SECTION("gzip of several members") {
    write_gzip(path, "a b\n\n");
    write_gzip(path, "\nc", "ab");
  }
  CHECK(read_all(path) == expected);
}

TEST_CASE("a byte order mark is left out at the beginning only", "[data]") {
  const TempDir dir;
  write_plain(dir.file("rows"),
              "a\n\xEF\xBB\xBF"
              "b\n");
  CHECK(read_all(dir.file("rows")) == Lines{{1, "a"},
                                            {2,
                                             "\xEF\xBB\xBF"
                                             "b"}});
}

TEST_CASE("files without a line call nothing", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("rows");
  for (const char* text : {"", "\n", "\r\n\n", "\xEF\xBB\xBF"}) {
    write_plain(path, text);
    CHECK(read_all(path).empty());
  }
  write_gzip(path, "");
  CHECK(read_all(path).empty());
}

TEST_CASE("lines longer than the read block arrive whole", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("rows");
  std::string text;
  Lines expected;
  // Lengths around the block of 64 KiB put line ends on both sides of its border.
  for (std::size_t length : {65535U, 65536U, 1U, 65537U, 200000U}) {
    const std::string line(length, static_cast<char>('a' + expected.size()));
    text += line + '\n';
    expected.emplace_back(expected.size() + 1, line);
  }
  write_plain(path, text);
  CHECK((read_all(path) == expected));
  write_gzip(path, text);
  CHECK((read_all(path) == expected));
}

TEST_CASE("a broken gzip stream is named, wherever it breaks", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("rows.jsonl.gz");
  write_gzip(path, "first\nsecond\nthird\n");
  const std::string whole = bytes_of(path);
  REQUIRE(whole.size() > 20);

  SECTION("cut off in header, data and trailer") {
    for (std::size_t size = 2; size < whole.size(); ++size) {
      INFO("first " << size << " of " << whole.size() << " bytes");
      write_plain(path, whole.substr(0, size));
      std::int64_t lines = 0;
      std::string text;
      try {
        for_each_line(path, [&](std::int64_t number, std::string_view) { lines = number; });
      } catch (const DataError& error) {
        text = error.what();
      }
      CHECK(text == path + ": expected a whole gzip stream, got its end after line " +
                        std::to_string(lines) + "; the file was cut off");
    }
  }
  SECTION("checksum") {
    std::string broken = whole;
    broken[whole.size() - 8] = static_cast<char>(broken[whole.size() - 8] ^ 1);
    write_plain(path, broken);
    CHECK_THROWS_TEXT(
        read_all(path), DataError,
        path + ": expected a whole gzip stream, got 'incorrect data check' after line 0");
  }
  SECTION("junk after the magic bytes") {
    write_plain(path, "\x1F\x8B\x07junk that is no gzip stream");
    CHECK_THROWS_TEXT(
        read_all(path), DataError,
        path + ": expected a whole gzip stream, got 'unknown compression method' after line 0");
  }
}

TEST_CASE("binary junk arrives as lines, for the row parser to refuse", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("rows");
  const std::string junk("\x00\xFF\x01\n\x80", 5);
  write_plain(path, junk);
  CHECK(read_all(path) == Lines{{1, std::string("\x00\xFF\x01", 3)}, {2, "\x80"}});
}

TEST_CASE("files that cannot be read are named", "[data]") {
  const TempDir dir;
  CHECK_THROWS_TEXT(read_all(dir.file("none")), DataError,
                    dir.file("none") + ": expected a readable file, got No such file or directory");
  CHECK_THROWS_TEXT(read_all(dir.path()), DataError,
                    dir.path() + ": expected a readable file, got Is a directory");
}

TEST_CASE("a line has at most 64 MiB", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("rows.gz");
  constexpr std::size_t kLimit = std::size_t{64} << 20;
  write_gzip(path, "first\n" + std::string(kLimit, 'x') + "\nlast");
  std::size_t longest = 0;
  for_each_line(
      path, [&](std::int64_t, std::string_view text) { longest = std::max(longest, text.size()); });
  CHECK(longest == kLimit);

  write_gzip(path, "first\n" + std::string(kLimit + 1, 'x'));
  CHECK_THROWS_TEXT(read_all(path), DataError,
                    path + ":2: expected a line of at most 64 MiB, got a longer one");
}

TEST_CASE("an exception of the row function passes through", "[data]") {
  const TempDir dir;
  write_plain(dir.file("rows"), "a\nb\n");
  std::int64_t seen = 0;
  CHECK_THROWS_TEXT(for_each_line(dir.file("rows"),
                                  [&](std::int64_t number, std::string_view) {
                                    seen = number;
                                    throw DataError("stop");
                                  }),
                    DataError, "stop");
  CHECK(seen == 1);
}

namespace {

Lines read_all_rows(const std::string& path) {
  Lines rows;
  prefopt::detail::read_rows(path, [&](std::int64_t number, std::string_view text) {
    rows.emplace_back(number, std::string(text));
    return true;
  });
  return rows;
}

}  // namespace

TEST_CASE("the elements of a JSON array are rows", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("rows.json");
  struct Case {
    const char* text;
    Lines rows;
  };
  const Case cases[] = {
      {"[]", {}},
      {" [ \n ] \n", {}},
      {"[{}]", {{1, "{}"}}},
      {"[\n  {\n    \"a\": [1, {\"b\": 2}]\n  },\n  {\"c\": 3}\n]\n",
       {{2, "{\n    \"a\": [1, {\"b\": 2}]\n  }"}, {5, "{\"c\": 3}"}}},
      {"\xEF\xBB\xBF[\r\n{\"a\": 1},\r\n{\"a\": 2}\r\n]\r\n",
       {{2, "{\"a\": 1}"}, {3, "{\"a\": 2}"}}},
      // Rows that share a line are numbered on.
      {R"([{"a": 1}, {"a": 2},{"a": 3}])",
       {{1, R"({"a": 1})"}, {2, R"({"a": 2})"}, {3, R"({"a": 3})"}}},
      // Brackets, quotes and commas in texts part nothing; what is no object is the parser's.
      {R"([{"a": "]}, \" \\", "b": "["}, 3.5 , "x,]", [1, 2], null])",
       {{1, R"({"a": "]}, \" \\", "b": "["})"},
        {2, "3.5"},
        {3, R"("x,]")"},
        {4, "[1, 2]"},
        {5, "null"}}},
      {"[{\"a\": 1}]\n\n", {{1, "{\"a\": 1}"}}},
      // Objects over several lines, one after the other.
      {"\n{\n\"a\": 1\n}\n{\n\"b\": {}\n}\n", {{2, "{\n\"a\": 1\n}"}, {5, "{\n\"b\": {}\n}"}}},
      // Lines, as they were.
      {"{\"a\": 1}\n\n{\"b\": 2}", {{1, "{\"a\": 1}"}, {3, "{\"b\": 2}"}}},
      {"{ \"a\":\n", {{1, "{ \"a\":"}}},
      {"[1]\n[2]\n", {{1, "[1]"}, {2, "[2]"}}},
      {"", {}},
  };
  for (const Case& c : cases) {
    INFO(c.text);
    write_plain(path, c.text);
    CHECK(read_all_rows(path) == c.rows);
    write_gzip(path, c.text);
    CHECK(read_all_rows(path) == c.rows);
  }
}

TEST_CASE("rows of an array may cross the blocks in which a file is read", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("rows");
  std::string text = std::string(70'000, ' ') + "[";
  Lines expected;
  for (const std::size_t length : {65500U, 65536U, 1U, 131072U, 20U}) {
    const std::string row = "{\"text\": \"" + std::string(length, 'x') + "\"}";
    text += (expected.empty() ? "\n" : ",\n") + row;
    expected.emplace_back(expected.size() + 2, row);
  }
  text += "\n]";
  write_gzip(path, text);
  CHECK((read_all_rows(path) == expected));
  std::int64_t seen = 0;
  prefopt::detail::read_rows(path, [&](std::int64_t, std::string_view) { return ++seen < 2; });
  CHECK(seen == 2);
}

TEST_CASE("arrays that are cut off or go on are named", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("rows.json");
  for (const char* text : {"[", "[{\"a\": 1}", "[{\"a\": 1},", "[{\"a\": ", "[{\"a\": \"x]"}) {
    write_plain(path, std::string("\n") + text);
    CHECK_THROWS_TEXT(read_all_rows(path), DataError,
                      path +
                          ": expected a whole JSON array, got the end of the file after line 2; "
                          "the file was cut off");
  }
  write_plain(path, "[{}]\n[{}]\n");
  CHECK_THROWS_TEXT(read_all_rows(path), DataError,
                    path +
                        ":2: expected the end of the file after the JSON array, got more; a "
                        "file is one array of rows, or a row a line");
  write_gzip(path, "[{\"a\": \"" + std::string((std::size_t{64} << 20) + 1, 'x') + "\"}]");
  CHECK_THROWS_TEXT(read_all_rows(path), DataError,
                    path + ":1: expected a row of at most 64 MiB, got a longer one");
}

TEST_CASE("files of other kinds are named", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("rows");
  using namespace std::string_view_literals;
  const std::pair<std::string_view, std::string_view> kinds[] = {
      {"ORC"sv,
       "an ORC file; write its rows as JSON lines, as pandas' "
       "to_json(orient='records', lines=True) does"},
      {"FEA1"sv, "a Feather file of version 1; write it as version 2, an Arrow file"},
      {"\xFF\xFE{\0\"\0"sv, "UTF-16; make it UTF-8, as iconv -f UTF-16 -t UTF-8 does"},
      {"\xFE\xFF\0{\0\""sv, "UTF-16; make it UTF-8, as iconv -f UTF-16 -t UTF-8 does"},
      {"{\0\"\0a\0"sv, "UTF-16; make it UTF-8, as iconv -f UTF-16 -t UTF-8 does"},
      {"PK\x03\x04"sv, "a ZIP archive; unpack it, or pack it with gzip"},
      {"version https://git-lfs.github.com/spec/v1\n"sv,
       "the pointer to a file of Git LFS; fetch the file itself"},
  };
  for (const auto& [bytes, name] : kinds) {
    write_plain(path, bytes);
    CHECK_THROWS_TEXT(read_all_rows(path), DataError,
                      path + ": expected JSON lines or a JSON array, got " + std::string(name));
  }
}
