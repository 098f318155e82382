// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "prefopt/data/data_check.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"

namespace prefopt {
namespace {

using testing_support::put;
using testing_support::TempDir;
using Ids = std::vector<std::int64_t>;

// Of the byte tokenizer: a prompt is one begin token and its bytes, a completion its bytes and one
// end token.
const std::string kRows =
    R"({"prompt": "ab", "chosen": "cdef", "rejected": "cx"})"  // 3, 5, 3; one byte in common
    "\n"
    R"({"prompt": "ab", "chosen": "", "rejected": "c"})"  // empty
    "\n"
    R"({"prompt": "ab", "chosen": "cdef", "rejected": "cx"})"  // line 1 again
    "\n"
    R"({"prompt": "ab", "chosen": "same", "rejected": "same"})"
    "\n"
    "\n"
    R"({"prompt": "ab", "chosen": "c"})"
    "\n"
    R"({"prompt": "0123456789", "chosen": "zz", "rejected": "0123456"})"  // 11, 3, 8
    "\n"
    "{\"prompt\": \"ab\", \"chosen\": \"\xff\", \"rejected\": \"c\"}\n"
    "[1]\n"
    R"({"prompt": "ab", "chosen": "q", "rejected": "r"})"  // 3, 2, 2; the prompt of line 1
    "\n";

/// `DEFECT, OPTION = POLICY: LINES` of each defect.
std::vector<std::string> found(const RowsCheck& check) {
  const std::vector<std::string> policies = {"error", "drop", "keep"};
  std::vector<std::string> list;
  for (const DefectRows& rows : check.defects) {
    list.push_back(rows.defect + ", " + rows.option + " = " +
                   policies[static_cast<std::size_t>(rows.policy)] + ":");
    for (const RowPlace& place : rows.rows) list.back() += " " + std::to_string(place.line);
  }
  return list;
}

DataCheck check_rows(const std::string& rows, const DataCheckOptions& options = {}) {
  const TempDir folder;
  put(folder.file("rows.jsonl"), rows);
  return check_data({folder.file("rows.jsonl")}, {}, ByteTokenizer(), options);
}

TEST_CASE("data check: defects with their lines and policies", "[data]") {
  const RowsCheck check = check_rows(kRows).train;
  CHECK(check.rows == 9);
  CHECK(check.usable == 4);
  CHECK(check.refused() == 5);
  CHECK(found(check) == std::vector<std::string>{
                            "empty completion, unusable = drop: 2",
                            "same as an earlier row, duplicate = keep: 3",
                            "chosen equals rejected, identical = drop: 4",
                            "expected a key 'rejected', unusable = drop: 6",
                            "expected UTF-8 text, unusable = drop: 8",
                            "expected an object, unusable = drop: 9",
                        });
}

TEST_CASE("data check: a policy for each defect", "[data]") {
  DataCheckOptions options;
  options.data.missing_key = DefectPolicy::kError;
  options.data.invalid_utf8 = DefectPolicy::kKeep;
  options.data.empty_completion = DefectPolicy::kKeep;
  options.data.identical = RowAction::kKeep;
  options.data.duplicate = RowAction::kDrop;
  options.data.long_prompt = RowAction::kError;
  options.data.max_prompt_length = 10;
  const RowsCheck check = check_rows(kRows, options).train;
  CHECK(check.refused() == 4);
  CHECK(found(check) == std::vector<std::string>{
                            "empty completion, empty_completion = keep: 2",
                            "same as an earlier row, duplicate = drop: 3",
                            "chosen equals rejected, identical = keep: 4",
                            "expected a key 'rejected', missing_key = error: 6",
                            "long prompt, long_prompt = error: 7",
                            "invalid UTF-8, invalid_utf8 = keep: 8",
                            "expected an object, unusable = drop: 9",
                        });
}

TEST_CASE("data check: lengths, kinds, prompts and what sharing saves", "[data]") {
  const RowsCheck check = check_rows(kRows).train;
  CHECK(check.pairs == 4);
  CHECK(check.labelled == 0);
  CHECK(check.prompt.total == 3 + 3 + 11 + 3);
  CHECK(check.prompt.mean == 5);
  CHECK(check.chosen.total == 5 + 5 + 3 + 2);
  CHECK(check.rejected.total == 3 + 3 + 8 + 2);
  CHECK(check.prompts == 2);
  CHECK(check.shared_prompts == 2);
  CHECK(check.sharing.apart == 2 * 20 + 15 + 16);
  CHECK(check.sharing.prompt_once == 20 + 15 + 16);
  // Lines 1 and 3 have one byte in common.
  CHECK(check.sharing.shared == 20 + 15 + 16 - 2);
  CHECK(check.truncated.empty());
  CHECK(check.end_tokens.completions == 8);
  CHECK(check.end_tokens.ended == 8);
  CHECK(check.end_tokens.ended_after == 8);
}

TEST_CASE("data check: truncation and the end tokens it takes are counted", "[data]") {
  DataCheckOptions options;
  options.data.max_prompt_length = 4;
  options.data.max_completion_length = 4;
  const RowsCheck check = check_rows(kRows, options).train;
  // Line 7 loses 7 tokens of its prompt and 4 of its rejected completion; lines 1 and 3 one each.
  CHECK(check.truncated_prompts == 1);
  CHECK(check.truncated_completions == 3);
  CHECK(check.truncated_tokens == 13);
  REQUIRE(check.truncated.size() == 3);
  CHECK(check.truncated[2].line == 7);
  CHECK(check.end_tokens.ended == 8);
  CHECK(check.end_tokens.ended_after == 5);
  options.data.end_of_cut = EndOfCut::kKeep;
  CHECK(check_rows(kRows, options).train.end_tokens.ended_after == 8);
  CHECK(check.prompt.max == 11);  // as it is in the file

  // Ids are taken as they are: 257 is the end token, and the first completion has none.
  const RowsCheck ids =
      check_rows(R"({"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4, 257]})").train;
  CHECK(ids.end_tokens.completions == 2);
  CHECK(ids.end_tokens.ended == 1);
  CHECK(ids.end_tokens.ended_after == 1);
}

TEST_CASE("data check: labels and mixed kinds", "[data]") {
  const std::string rows =
      R"({"prompt": "a", "completion": "b", "label": true}
{"prompt": "a", "completion": "c", "label": false}
{"prompt": "a", "completion": "d", "label": 1}
{"prompt": "a", "completion": "e"}
{"prompt": "a", "chosen": "b", "rejected": "c"}
)";
  const RowsCheck check = check_rows(rows).train;
  CHECK(check.usable == 5);
  CHECK(check.pairs == 1);
  CHECK(check.labelled == 3);
  CHECK(check.desirable == 2);

  DataCheckOptions unpaired;
  unpaired.needs = RowNeeds{.rejected = false, .columns = {Column::kLabel}};
  CHECK(found(check_rows(rows, unpaired).train) ==
        std::vector<std::string>{
            "expected a key 'label', unusable = drop: 4",
            "expected one completion and a label, unusable = drop: 5",
        });
}

TEST_CASE("data check: several files and leaks between purposes", "[data]") {
  const TempDir folder;
  const auto row = [](const std::string& prompt, const std::string& chosen) {
    return R"({"prompt": ")" + prompt + R"(", "chosen": ")" + chosen + R"(", "rejected": "no"})" +
           "\n";
  };
  put(folder.file("a"), row("p", "x") + row("q", "x"));
  put(folder.file("b"), row("r", "x") + row("p", "x"));
  put(folder.file("c"), row("q", "y") + row("r", "x"));
  DataCheckOptions options;
  DataCheck check = check_data({folder.file("a"), folder.file("b")}, {folder.file("c")},
                               ByteTokenizer(), options);
  CHECK(check.train.rows == 4);
  CHECK(check.held_out.rows == 2);
  REQUIRE(check.train.defects.size() == 1);
  CHECK(check.train.defects[0].rows[0].file == 1);
  CHECK(check.train.defects[0].rows[0].line == 2);
  REQUIRE(check.leaks.size() == 2);
  CHECK(check.leaks[0].train.file == 0);
  CHECK(check.leaks[0].train.line == 2);
  CHECK(check.leaks[0].held_out.file == 2);
  CHECK(check.leaks[0].held_out.line == 1);
  CHECK_FALSE(check.leaks[0].whole_row);
  CHECK(check.leaks[1].train.file == 1);
  CHECK(check.leaks[1].held_out.line == 2);
  CHECK(check.leaks[1].whole_row);
  CHECK(check.refused() == 0);
  options.data.leak = RowAction::kDrop;
  CHECK(
      check_data({folder.file("a"), folder.file("b")}, {folder.file("c")}, ByteTokenizer(), options)
          .refused() == 2);
}

TEST_CASE("data check: lengths are summarized", "[data]") {
  Ids lengths;
  for (std::int64_t i = 100; i >= 1; --i) lengths.push_back(i);
  const LengthSummary summary = summarize_lengths(lengths);
  CHECK(summary.count == 100);
  CHECK(summary.min == 1);
  CHECK(summary.median == 50);
  CHECK(summary.p95 == 95);
  CHECK(summary.p99 == 99);
  CHECK(summary.max == 100);
  CHECK(summary.mean == 50.5);
  CHECK(summary.bin_width == 10);
  CHECK(summary.bins == Ids{9, 10, 10, 10, 10, 10, 10, 10, 10, 10, 1});
  CHECK(summarize_lengths({7}).bins == Ids{0, 0, 0, 0, 0, 0, 0, 1});
  CHECK(summarize_lengths({11}).bin_width == 1);
  CHECK(summarize_lengths({12}).bin_width == 2);
  CHECK(summarize_lengths({}).bins.empty());
}

TEST_CASE("data check: files that cannot be read", "[data]") {
  const TempDir folder;
  CHECK_THROWS_TEXT(
      check_data({folder.file("none")}, {}, ByteTokenizer()), DataError,
      folder.file("none") + ": expected a readable file, got No such file or directory");
  put(folder.file("empty"), "\n\n");
  CHECK_THROWS_TEXT(check_data({folder.file("empty")}, {}, ByteTokenizer()), DataError,
                    folder.file("empty") + ": expected at least one row, got none");
  DataCheckOptions options;
  options.data.missing_key = DefectPolicy::kKeep;
  CHECK_THROWS_TEXT(check_data({folder.file("empty")}, {}, ByteTokenizer(), options), ConfigError,
                    "check_data: expected missing_key to be 'error' or 'drop', got 'keep'; there "
                    "is nothing to keep");
}

}  // namespace
}  // namespace prefopt
