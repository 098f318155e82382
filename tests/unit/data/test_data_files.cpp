// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <string>
#include <vector>

#include "data/data_files.h"
#include "prefopt/data/data_check.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/leaks.h"
#include "prefopt/data/prompts.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"

using namespace prefopt;
using prefopt::detail::find_data_files;
using prefopt::detail::note_on_folders;
using prefopt::testing_support::put;
using prefopt::testing_support::TempDir;

namespace {

/// A folder with empty files of these names.
class Shards {
 public:
  explicit Shards(const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      std::filesystem::create_directories(std::filesystem::path(path(name)).parent_path());
      put(path(name), "");
    }
  }

  std::string path(const std::string& name) const { return dir_.file(name); }
  const std::string& path() const { return dir_.path(); }

  /// The files of the folder, without its path.
  std::vector<std::string> of(DataSplit split) const { return of(path(), split); }
  std::vector<std::string> of(const std::string& rows, DataSplit split) const {
    std::vector<std::string> names;
    for (const auto& part : find_data_files(rows, split)) {
      for (const std::string& file : part.files) names.push_back(file.substr(path().size() + 1));
    }
    return names;
  }

 private:
  TempDir dir_;
};

using Names = std::vector<std::string>;

std::string pair(const std::string& prompt, const std::string& chosen = "yes") {
  return R"({"prompt": ")" + prompt + R"(", "chosen": ")" + chosen +
         R"(", "rejected": "no"})"
         "\n";
}

}  // namespace

TEST_CASE("a folder stands for the files of one split, in the order of their numbers", "[data]") {
  const Shards shards({"train-00000-of-00003.parquet", "train-00002-of-00003.parquet",
                       "train-00001-of-00003.parquet", "test-00000-of-00001.parquet", "README.md",
                       ".gitattributes", "dataset_infos.json"});
  const Names train = {"train-00000-of-00003.parquet", "train-00001-of-00003.parquet",
                       "train-00002-of-00003.parquet"};
  CHECK(shards.of(DataSplit::kTrain) == train);
  CHECK(shards.of(DataSplit::kHeldOut) == Names{"test-00000-of-00001.parquet"});
  CHECK_THROWS_TEXT(shards.of(DataSplit::kAny), DataError,
                    shards.path() +
                        ": expected one split, got 'test', 'train'; name its files, as "
                        "in " +
                        shards.path() + "/test*");
  CHECK(shards.of(shards.path("tr*.parquet"), DataSplit::kAny) == train);
}

TEST_CASE("folders as the hub and others lay them out", "[data]") {
  CHECK(Shards({"data/train-00000-of-00001.parquet", "README.md"}).of(DataSplit::kAny) ==
        Names{"data/train-00000-of-00001.parquet"});
  const Shards by_folder({"train/0002.jsonl", "train/0010.jsonl", "validation/0000.jsonl"});
  CHECK(by_folder.of(DataSplit::kTrain) == Names{"train/0002.jsonl", "train/0010.jsonl"});
  CHECK(by_folder.of(DataSplit::kHeldOut) == Names{"validation/0000.jsonl"});
  // Numbers count as numbers, whatever their zeros.
  const Shards plain({"part-10.jsonl.gz", "part-9.jsonl.gz", "part-010.jsonl.gz"});
  CHECK(plain.of(DataSplit::kTrain) ==
        Names{"part-9.jsonl.gz", "part-010.jsonl.gz", "part-10.jsonl.gz"});
  CHECK(Shards({"b.json", "a.json"}).of(DataSplit::kAny) == Names{"a.json", "b.json"});
  CHECK(Shards({"train_prefs.jsonl", "test_prefs.jsonl"}).of(DataSplit::kTrain) ==
        Names{"train_prefs.jsonl"});
  // Ends of names in capitals.
  CHECK(Shards({"Train-00000-of-00002.JSONL", "Train-00001-of-00002.JSONL"}).of(DataSplit::kAny) ==
        Names{"Train-00000-of-00002.JSONL", "Train-00001-of-00002.JSONL"});
  CHECK(Shards({"a.Parquet"}).of(DataSplit::kTrain) == Names{"a.Parquet"});
  CHECK(Shards({"a.jsonl.GZ"}).of(DataSplit::kTrain) == Names{"a.jsonl.GZ"});
  // The hub's converted files.
  const Shards converted({"default/train/0000.parquet", "default/train/0001.parquet",
                          "default/test/0000.parquet", "README.md"});
  CHECK(converted.of(DataSplit::kTrain) ==
        Names{"default/train/0000.parquet", "default/train/0001.parquet"});
  CHECK(converted.of(DataSplit::kHeldOut) == Names{"default/test/0000.parquet"});
  // Some writers count from 1.
  CHECK(Shards({"x-1-of-2.jsonl", "x-2-of-2.jsonl"}).of(DataSplit::kAny).size() == 2);
}

TEST_CASE("folders that do not say which files are meant are refused", "[data]") {
  struct Case {
    std::vector<std::string> names;
    DataSplit split;
    std::string text;
  };
  const Case cases[] = {
      {{"notes.txt"},
       DataSplit::kTrain,
       "expected files of rows (.jsonl, .json, .parquet, .arrow, …), got none"},
      {{"train_sft.jsonl", "train_prefs.jsonl", "test.jsonl"},
       DataSplit::kTrain,
       "expected one split to train on, got 'test', 'train_prefs', 'train_sft'; name its files, as "
       "in DIR/train_prefs*"},
      {{"train.jsonl", "test.jsonl", "validation.jsonl"},
       DataSplit::kHeldOut,
       "expected one held-out split, got 'test', 'train', 'validation'; name its files, as in "
       "DIR/test*"},
      {{"test.jsonl", "dev.jsonl"},
       DataSplit::kTrain,
       "expected one split to train on, got 'dev', 'test'; name its files, as in DIR/dev*"},
      {{"train.jsonl", "more.jsonl"},
       DataSplit::kTrain,
       "expected files that are all of a split, or of none, got 'more', 'train'; name the files "
       "that are meant"},
      {{"train.jsonl", "train.parquet"},
       DataSplit::kTrain,
       "expected files of one format, or rows would be there twice, got train.jsonl and "
       "train.parquet; name the files that are meant"},
      {{"train.jsonl", "more.csv"},
       DataSplit::kTrain,
       "expected files of rows that are read (.jsonl, .json, .parquet, .arrow, …), got also "
       "more.csv; name the files that are meant"},
      {{"train.jsonl", "more.CSV"},
       DataSplit::kTrain,
       "expected files of rows that are read (.jsonl, .json, .parquet, .arrow, …), got also "
       "more.CSV; name the files that are meant"},
      {{"train.JSONL", "train.parquet"},
       DataSplit::kTrain,
       "expected files of one format, or rows would be there twice, got train.JSONL and "
       "train.parquet; name the files that are meant"},
      {{"de/train/0000.parquet", "en/train/0000.parquet"},
       DataSplit::kTrain,
       "expected files of one configuration, got 'de', 'en'; name the folder that is meant"},
      {{"a/b/train/0000.parquet"},
       DataSplit::kTrain,
       "expected files of rows (.jsonl, .json, .parquet, .arrow, …), got none"},
      {{"a.jsonl", "data/b.jsonl"},
       DataSplit::kTrain,
       "expected files of rows here or in a folder, got both, also in 'data'; name the one that is "
       "meant"},
      {{"train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"},
       DataSplit::kTrain,
       "expected all 3 files of a series, got none named train-00001-of-00003.jsonl"},
  };
  for (const Case& c : cases) {
    const Shards shards(c.names);
    std::string text = c.text;
    if (const auto at = text.find("DIR"); at != std::string::npos) {
      text.replace(at, 3, shards.path());
    }
    CHECK_THROWS_TEXT(shards.of(c.split), DataError, shards.path() + ": " + text);
  }
}

TEST_CASE("what lies in a folder and is not read is named", "[data]") {
  const auto note = [](const Shards& shards, DataSplit split) {
    std::string text = note_on_folders(shards.path(), split);
    for (auto at = text.find(shards.path()); at != std::string::npos;
         at = text.find(shards.path())) {
      text.replace(at, shards.path().size(), "DIR");
    }
    return text;
  };
  CHECK(note(Shards({"train.jsonl", "test.jsonl", "README.md", "LICENSE", ".gitattributes",
                     "dataset_info.json"}),
             DataSplit::kTrain) == "");
  CHECK(note(Shards({"train.jsonl", "notes.txt", "old/train.jsonl", "more.json"}),
             DataSplit::kTrain) == "not read: 'DIR/more.json', 'DIR/notes.txt', 'DIR/old'");
  CHECK(note(Shards({"data/train.parquet", "data/x.txt", "old/a.jsonl"}), DataSplit::kTrain) ==
        "not read: 'DIR/data/x.txt', 'DIR/old'");
  CHECK(note(Shards({"default/train/0.parquet", "default/x.txt", "none/x.txt"}),
             DataSplit::kTrain) == "not read: 'DIR/default/x.txt', 'DIR/none'");
  CHECK(note(Shards({"a.jsonl", "1.txt", "2.txt", "3.txt", "4.txt", "5.txt", "6.txt", "10.txt"}),
             DataSplit::kAny) ==
        "not read: 'DIR/1.txt', 'DIR/2.txt', 'DIR/3.txt', 'DIR/4.txt', 'DIR/5.txt' and 2 more");
  CHECK(note_on_folders(Shards({"a.jsonl", "b.txt"}).path("a.jsonl"), DataSplit::kAny) == "");
}

TEST_CASE("patterns name files, and all of a series that they match", "[data]") {
  const Shards shards({"train-00000-of-00003.jsonl", "train-00001-of-00003.jsonl", "x/y.jsonl"});
  CHECK(shards.of(shards.path("train-0000[01]*"), DataSplit::kAny).size() == 2);
  const std::string all = shards.path("train-*.jsonl");
  CHECK_THROWS_TEXT(shards.of(all, DataSplit::kAny), DataError,
                    all +
                        ": expected all 3 files of a series, got none named "
                        "train-00002-of-00003.jsonl");
  const std::string none = shards.path("val*");
  CHECK_THROWS_TEXT(shards.of(none, DataSplit::kAny), DataError,
                    none + ": expected files that match, got none");
  const std::string deep = shards.path("**/*.jsonl");
  CHECK_THROWS_TEXT(shards.of(deep, DataSplit::kAny), DataError,
                    deep + ": expected a pattern for names in one folder, got '**'");
  const std::string folder = shards.path("?");
  CHECK_THROWS_TEXT(shards.of(folder, DataSplit::kAny), DataError,
                    folder + ": expected files that match, got the folder " + shards.path("x"));
}

TEST_CASE("a list names files with weights", "[data]") {
  const Shards shards({"a.jsonl", "b/1.jsonl", "b/2.jsonl"});
  const std::string list = R"(["FOLDER/a.jsonl", {"path": "FOLDER/b", "weight": 0.5}])";
  const auto in_folder = [&](std::string text) {
    for (auto at = text.find("FOLDER"); at != std::string::npos; at = text.find("FOLDER")) {
      text.replace(at, 6, shards.path());
    }
    return text;
  };
  const auto parts = find_data_files(in_folder(list), DataSplit::kTrain);
  REQUIRE(parts.size() == 2);
  CHECK(parts[0].weight == 1);
  CHECK(parts[1].weight == 0.5);
  CHECK(parts[1].files.size() == 2);

  const std::pair<std::string, std::string> refused[] = {
      {"[]", "rows: expected a list of files, got an empty one"},
      {"[3]",
       "rows: expected a list of paths or {\"path\": text, \"weight\": number}, got 3 in it"},
      {R"([{"path": "FOLDER/a.jsonl", "wieght": 2}])",
       "rows: expected 'path' and 'weight' of a file, got 'wieght'; did you mean 'weight'?"},
      {R"([{"path": "FOLDER/a.jsonl", "weight": 0}])",
       "rows: expected the weight of FOLDER/a.jsonl to be above 0 and at most 1000, got 0"},
      {R"(["FOLDER/a.jsonl", "FOLDER/a.jsonl"])",
       "rows: expected each file once, got FOLDER/a.jsonl twice; its weight says how often it is "
       "read"},
  };
  for (const auto& [rows, text] : refused) {
    CHECK_THROWS_TEXT(find_data_files(in_folder(rows), DataSplit::kTrain), ConfigError,
                      in_folder(text));
  }
  CHECK_THROWS_TEXT(prefopt::detail::find_files_of_rows(in_folder(list), DataSplit::kAny),
                    ConfigError,
                    "rows: expected a weight for rows that are trained on alone, got 0.5 for " +
                        shards.path("b/1.jsonl"));
}

TEST_CASE("rows of several files are those of one, each with its file", "[data]") {
  const TempDir dir;
  put(dir.file("2.jsonl"), pair("a") + "\n" + pair("b"));
  put(dir.file("10.jsonl"), pair("a") +
                                R"({"prompt": "c", "chosen": "x"})"
                                "\n" +
                                pair("d"));
  put(dir.file("11.jsonl"), "");
  const Dataset rows = load_dataset(dir.path(), ByteTokenizer(), {});
  REQUIRE(rows.pairs.size() == 4);
  CHECK(rows.files.size() == 3);
  CHECK(rows.file_of == std::vector<std::size_t>{0, 0, 1, 1});
  CHECK(rows.lines == std::vector<std::int64_t>{1, 3, 1, 3});
  CHECK(rows.place(3) == dir.file("10.jsonl") + ":3");
  CHECK(rows.report.rows_read == 5);
  CHECK(rows.report.rows_kept == 4);
  const std::string ten = dir.file("10.jsonl");
  CHECK(rows.report.summary() == ten + ": dropped 1 row: expected a key 'rejected' (line 2)\n" +
                                     ten + ": kept 1 row: same as an earlier row (line 1)");

  const Dataset once = load_dataset(dir.path(), ByteTokenizer(), {.duplicate = RowAction::kDrop});
  CHECK(once.pairs.size() == 3);
  CHECK(once.report.rows_kept == 3);
  CHECK_THROWS_TEXT(load_dataset(dir.path(), ByteTokenizer(), {.duplicate = RowAction::kError}),
                    DataError,
                    ten +
                        ":1: expected a usable row, got one with 'same as an earlier row'; the "
                        "option duplicate = 'drop' leaves such rows out");
  CHECK(load_dataset(dir.path(), ByteTokenizer(), {.max_rows = 3}).report.rows_read == 3);
  CHECK(load_dataset(dir.path(), ByteTokenizer(), {.max_rows = 2}).pairs.size() == 2);

  Dataset held_out = load_dataset(dir.file("10.jsonl"), ByteTokenizer(), {});
  Dataset train = rows;
  CHECK(apply_leak_policy(train, held_out, RowAction::kDrop, "rows") ==
        "dropped 3 rows: prompt of a held-out row (" + dir.file("2.jsonl") + ":1, " + ten + ":1, " +
            ten + ":3)");
  CHECK(train.place(0) == dir.file("2.jsonl") + ":3");

  const DataCheck check = check_data({dir.path()}, {}, ByteTokenizer());
  CHECK(check.files.size() == 3);
  CHECK(check.train.usable == 4);
}

TEST_CASE("prompts of several files come in their order", "[data]") {
  const TempDir dir;
  put(dir.file("b.jsonl"), R"({"prompt": "2"})"
                           "\n");
  put(dir.file("a.jsonl"), R"({"prompt": "1"})"
                           "\n");
  const auto prompts = load_prompts(dir.path(), ByteTokenizer());
  REQUIRE(prompts.size() == 2);
  CHECK(prompts[0].text == "1");
  put(dir.file("b.jsonl"), R"({"text": 3})"
                           "\n");
  try {
    load_prompts(dir.path(), ByteTokenizer());
    FAIL("no error");
  } catch (const DataError& error) {
    CHECK(std::string(error.what()).starts_with(dir.file("b.jsonl") + ":1: expected "));
  }
}
