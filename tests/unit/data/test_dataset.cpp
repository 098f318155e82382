// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <fstream>
#include <numeric>

#include "prefopt/data/dataset.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"

using namespace prefopt;
using prefopt::testing_support::TempDir;
using Ids = std::vector<std::int64_t>;

namespace {

constexpr std::int64_t kBos = 256;
constexpr std::int64_t kEos = 257;

PreferenceRow text_row(std::string prompt, std::string chosen, std::string rejected) {
  PreferenceRow row;
  row.prompt = std::move(prompt);
  row.chosen = std::move(chosen);
  row.rejected = std::move(rejected);
  return row;
}

PreferenceRow ids_row(Ids prompt, Ids chosen, Ids rejected) {
  PreferenceRow row;
  row.prompt_ids = std::move(prompt);
  row.chosen_ids = std::move(chosen);
  row.rejected_ids = std::move(rejected);
  row.tokenized = true;
  return row;
}

// `<` and `>` stand for the begin and the end token.
std::string shown(const Ids& ids) {
  std::string text;
  for (std::int64_t id : ids) {
    text += id == kBos ? '<' : id == kEos ? '>' : static_cast<char>(id);
  }
  return text;
}

std::string shown(const TokenRow& pair) {
  return shown(pair.prompt) + "|" + shown(pair.chosen) + "|" + shown(pair.rejected);
}

// A byte tokenizer that has no begin or end token.
class PlainTokenizer final : public Tokenizer {
 public:
  std::string name() const override { return "plain"; }
  std::vector<std::int64_t> encode(std::string_view text) const override {
    return ByteTokenizer().encode(text);
  }
  std::string decode(const std::vector<std::int64_t>& ids) const override {
    return ByteTokenizer().decode(ids);
  }
  std::int64_t vocab_size() const override { return 256; }
  std::int64_t bos_id() const override { return -1; }
  std::int64_t eos_id() const override { return -1; }
  std::int64_t pad_id() const override { return -1; }
};

class RowFile {
 public:
  explicit RowFile(std::string_view rows) : path_(dir_.file("rows.jsonl")) {
    std::ofstream(path_, std::ios::binary) << rows;
  }
  const std::string& path() const { return path_; }
  Dataset load(const DataOptions& options = {}, bool need_rejected = true) const {
    return load_dataset(path_, ByteTokenizer(), options, {.rejected = need_rejected});
  }

 private:
  prefopt::testing_support::TempDir dir_;
  std::string path_;
};

std::vector<std::string> shown(const std::vector<TokenRow>& pairs) {
  std::vector<std::string> all;
  for (const auto& pair : pairs) all.push_back(shown(pair));
  return all;
}

}  // namespace

TEST_CASE("rows become token ids with begin and end tokens", "[data]") {
  const ByteTokenizer bytes;
  RowReport report;
  const PreferenceRow row = text_row("ab", " c", " de");
  const TokenRow pair = tokenize_row(row, bytes, {}, report);
  CHECK(pair.prompt == Ids{kBos, 'a', 'b'});
  CHECK(pair.chosen == Ids{' ', 'c', kEos});
  CHECK(pair.rejected == Ids{' ', 'd', 'e', kEos});

  CHECK(shown(tokenize_row(row, bytes, {.add_bos = false}, report)) == "ab| c>| de>");
  CHECK(shown(tokenize_row(row, bytes, {.add_eos = false}, report)) == "<ab| c| de");
  CHECK(shown(tokenize_row(row, PlainTokenizer(), {}, report)) == "ab| c| de");

  PreferenceRow single = text_row("ab", " c", "");
  single.has_rejected = false;
  CHECK(tokenize_row(single, bytes, {}, report).rejected.empty());

  // Ids of the row are used as they are.
  CHECK(shown(tokenize_row(ids_row({'a'}, {'b'}, {'c', 'd'}), bytes, {}, report)) == "a|b|cd");
  CHECK(report.truncated_prompts == 0);
  CHECK(report.truncated_completions == 0);
}

TEST_CASE("budgets cut the prompt's beginning and the completions' end", "[data]") {
  struct Case {
    std::int64_t max_prompt, max_completion, max_length;
    const char* expected;
    std::int64_t cut_prompts, cut_completions;
  };
  // Uncut: "<abcdef" has 7 tokens, "uvwx>" 5, "yz>" 3.
  const Case cases[] = {
      {0, 0, 0, "<abcdef|uvwx>|yz>", 0, 0},
      {7, 5, 12, "<abcdef|uvwx>|yz>", 0, 0},
      // The prompt keeps its end and its begin token.
      {6, 0, 0, "<bcdef|uvwx>|yz>", 1, 0},
      {2, 0, 0, "<f|uvwx>|yz>", 1, 0},
      {1, 0, 0, "<|uvwx>|yz>", 1, 0},
      // A completion that is cut does not end.
      {0, 4, 0, "<abcdef|uvwx|yz>", 0, 1},
      {0, 2, 0, "<abcdef|uv|yz", 0, 2},
      {0, 1, 0, "<abcdef|u|y", 0, 2},
      // Both together: the prompt gives way to the longer completion first.
      {0, 0, 11, "<bcdef|uvwx>|yz>", 1, 0},
      {0, 0, 7, "<f|uvwx>|yz>", 1, 0},
      {0, 0, 6, "<|uvwx>|yz>", 1, 0},
      {0, 0, 5, "<|uvwx|yz>", 1, 1},
      {0, 0, 3, "<|uv|yz", 1, 2},
      {0, 0, 2, "<|u|y", 1, 2},
      // The completion budget comes before the total.
      {0, 3, 9, "<bcdef|uvw|yz>", 1, 1},
      {3, 3, 9, "<ef|uvw|yz>", 1, 1},
      {3, 3, 5, "<f|uvw|yz>", 1, 1},
      // A completion that two budgets cut counts once.
      {0, 4, 3, "<|uv|yz", 1, 2},
  };
  for (const auto& c : cases) {
    INFO(c.max_prompt << " " << c.max_completion << " " << c.max_length);
    const DataOptions options = {.max_prompt_length = c.max_prompt,
                                 .max_completion_length = c.max_completion,
                                 .max_length = c.max_length};
    RowReport report;
    CHECK(shown(tokenize_row(text_row("abcdef", "uvwx", "yz"), ByteTokenizer(), options, report)) ==
          c.expected);
    CHECK(report.truncated_prompts == c.cut_prompts);
    CHECK(report.truncated_completions == c.cut_completions);
  }
}

TEST_CASE("the prompt leaves room for the longer completion, whichever it is", "[data]") {
  const DataOptions options = {.max_prompt_length = 0, .max_length = 8};
  RowReport report;
  CHECK(shown(tokenize_row(text_row("abcdef", "uvwx", "yz"), ByteTokenizer(), options, report)) ==
        "<ef|uvwx>|yz>");
  CHECK(shown(tokenize_row(text_row("abcdef", "yz", "uvwx"), ByteTokenizer(), options, report)) ==
        "<ef|yz>|uvwx>");
}

TEST_CASE("budgets without begin or end tokens", "[data]") {
  const DataOptions options = {.max_prompt_length = 2, .max_completion_length = 2, .max_length = 0};
  const auto cut = [&](const PreferenceRow& row, const Tokenizer& tokenizer, DataOptions with) {
    RowReport report;
    return shown(tokenize_row(row, tokenizer, with, report));
  };
  const PreferenceRow text = text_row("abcd", "uvwx", "y");
  CHECK(cut(text, PlainTokenizer(), options) == "cd|uv|y");
  DataOptions none = options;
  none.add_bos = none.add_eos = false;
  CHECK(cut(text, ByteTokenizer(), none) == "cd|uv|y");

  // Given ids keep an end token only if they have one.
  CHECK(cut(ids_row({'a', 'b', 'c'}, {'u', 'v', kEos}, {'x', 'y', 'z'}), ByteTokenizer(),
            options) == "bc|uv|xy");
  CHECK(cut(ids_row({kBos, 'b', 'c'}, {'u'}, {'x'}), ByteTokenizer(), options) == "<c|u|x");
}

TEST_CASE("a file with several defects is loaded and reported", "[data]") {
  const RowFile file(
      R"({"prompt": "a", "chosen": "b", "rejected": "c"}
{"prompt": "a", "chosen": "", "rejected": "c"}

{"prompt": "a", "chosen": "b"}
{"prompt": "a", "chosen": "b", "rejected": "b"}
not JSON
{"prompt": "a", "chosen": "b", "rejected": ""}
{"prompt": "abcdefghij", "chosen": "b", "rejected": " "}
{"prompt": "a", "completion": "b"}
{"prompt": "a", "chosen": "bcdefg", "rejected": "bxdefgh"}
{"prompt": "a", "chosen": ")"
      "\xFF"
      R"(", "rejected": "b"}
{"chosen": 1, "rejected": "b"}
)");
  const Dataset dataset = file.load({.max_prompt_length = 4, .max_completion_length = 5});
  CHECK(shown(dataset.pairs) ==
        std::vector<std::string>{"<a|b>|c>", "<hij|b>| >", "<a|bcdef|bxdef"});
  const RowReport& report = dataset.report;
  CHECK(report.rows_read == 11);
  CHECK(report.rows_kept == 3);
  CHECK(report.truncated_prompts == 1);
  CHECK(report.truncated_completions == 2);
  CHECK(report.kept_with.empty());
  CHECK(report.dropped ==
        std::map<std::string, Ids>{{"empty completion", {2, 7}},
                                   {"chosen equals rejected", {5}},
                                   {"expected a key 'rejected'", {4, 9}},
                                   {"expected JSON", {6}},
                                   {"expected UTF-8 text", {11}},
                                   {"expected 'chosen' to be text or a list of messages", {12}}});
  CHECK(report.summary() ==
        "dropped 1 row: chosen equals rejected (line 5)\n"
        "dropped 2 rows: empty completion (lines 2, 7)\n"
        "dropped 1 row: expected 'chosen' to be text or a list of messages (line 12)\n"
        "dropped 1 row: expected JSON (line 6)\n"
        "dropped 1 row: expected UTF-8 text (line 11)\n"
        "dropped 2 rows: expected a key 'rejected' (lines 4, 9)\n"
        "truncated 1 prompt, 2 completions (lines 8, 10)");
}

TEST_CASE("a summary names five lines at most", "[data]") {
  RowReport report;
  CHECK(report.summary().empty());
  report.rows_read = 9;
  report.rows_kept = 9;
  CHECK(report.summary().empty());
  report.dropped["empty completion"] = {2, 7, 19};
  CHECK(report.summary() == "dropped 3 rows: empty completion (lines 2, 7, 19)");
  report.dropped["empty completion"] = {1, 2, 3, 4, 5};
  CHECK(report.summary() == "dropped 5 rows: empty completion (lines 1, 2, 3, 4, 5)");
  report.dropped["empty completion"] = {1, 2, 3, 4, 5, 6};
  CHECK(report.summary() == "dropped 6 rows: empty completion (lines 1, 2, 3, 4, 5, …)");
  report.dropped.clear();
  report.kept_with["chosen equals rejected"] = {4};
  report.truncated_completions = 3;
  report.truncated_lines = {2, 8};
  CHECK(report.summary() ==
        "kept 1 row: chosen equals rejected (line 4)\ntruncated 3 completions (lines 2, 8)");
  report.truncated_prompts = 12;
  CHECK(report.summary() ==
        "kept 1 row: chosen equals rejected (line 4)\n"
        "truncated 12 prompts, 3 completions (lines 2, 8)");
}

TEST_CASE("budgets make completions equal or empty: defects too", "[data]") {
  const RowFile file(R"({"prompt": "a", "chosen": "abcdefgh1", "rejected": "abcdefgh2"}
{"prompt": "a", "chosen": "abc", "rejected": "xyz"}
)");
  CHECK(file.load({.max_completion_length = 4}).report.summary() ==
        "dropped 1 row: chosen equals rejected (line 1)");
  CHECK_THROWS_TEXT(file.load({.max_completion_length = 1, .end_of_cut = EndOfCut::kKeep}),
                    DataError,
                    file.path() +
                        ": expected a usable row, got none in 2 read; dropped 2 rows: empty "
                        "completion (lines 1, 2)");
}

TEST_CASE("supervised training does not pay for the rejected completion", "[data]") {
  const RowFile file(R"({"prompt": "abcdef", "chosen": "ok", "rejected": ")" +
                     std::string(500, 'x') + "\"}\n");
  const Dataset dataset =
      load_dataset(file.path(), ByteTokenizer(), {.max_length = 16}, {.rejected = false});
  CHECK(shown(dataset.pairs) == std::vector<std::string>{"<abcdef|ok>|"});
  CHECK(dataset.report.summary().empty());
}

TEST_CASE("policy error stops at the first such row", "[data]") {
  const std::string good = R"({"prompt": "a", "chosen": "b", "rejected": "c"})"
                           "\n";
  const DataOptions strict = {.max_prompt_length = 3,
                              .unusable = RowAction::kError,
                              .identical = RowAction::kError,
                              .long_prompt = RowAction::kError};
  const auto check = [&](std::string_view row, std::string_view text) {
    const RowFile file(good + std::string(row));
    CHECK_THROWS_TEXT(file.load(strict), DataError, file.path() + ":2: " + std::string(text));
  };
  check(R"({"prompt": "a", "chosen": "b"})", "expected a key 'rejected', got {chosen, prompt}");
  check(R"({"prompt": "a", "completion": "b"})",
        "expected a key 'rejected', got a row with one completion");
  check(R"({"prompt": "a", "chosen": "b", "rejected": ""})",
        "expected a usable row, got one with 'empty completion'; the option unusable = 'drop' "
        "leaves such rows out");
  check(R"({"prompt": "a", "chosen": "b", "rejected": "b"})",
        "expected a usable row, got one with 'chosen equals rejected'; the option identical = "
        "'drop' leaves such rows out");
  check(R"({"prompt": "abc", "chosen": "b", "rejected": "c"})",
        "expected a usable row, got one with 'long prompt'; the option long_prompt = 'drop' "
        "leaves such rows out");
}

TEST_CASE("policies drop and keep", "[data]") {
  const RowFile file(R"({"prompt": "a", "chosen": "b", "rejected": "c"}
{"prompt": "a", "chosen": "b", "rejected": "b"}
{"prompt": "abc", "chosen": "bcdef", "rejected": "c"}
{"prompt": "abc", "chosen": "b", "rejected": "b"}
)");
  SECTION("keep") {
    const Dataset dataset = file.load({.max_prompt_length = 3,
                                       .max_completion_length = 4,
                                       .identical = RowAction::kKeep,
                                       .long_prompt = RowAction::kKeep});
    CHECK(shown(dataset.pairs) ==
          std::vector<std::string>{"<a|b>|c>", "<a|b>|b>", "<bc|bcde|c>", "<bc|b>|b>"});
    CHECK(dataset.report.summary() ==
          "kept 2 rows: chosen equals rejected (lines 2, 4)\n"
          "truncated 2 prompts, 1 completion (lines 3, 4)");
  }
  SECTION("drop") {
    const Dataset dataset = file.load({.max_prompt_length = 3,
                                       .max_completion_length = 4,
                                       .identical = RowAction::kDrop,
                                       .long_prompt = RowAction::kDrop});
    CHECK(shown(dataset.pairs) == std::vector<std::string>{"<a|b>|c>"});
    // Cuts in a dropped row are not counted.
    CHECK(dataset.report.summary() ==
          "dropped 2 rows: chosen equals rejected (lines 2, 4)\n"
          "dropped 1 row: long prompt (line 3)");
  }
  SECTION("a kept defect of a row that another defect drops is not reported as kept") {
    const Dataset dataset = file.load(
        {.max_prompt_length = 3, .identical = RowAction::kKeep, .long_prompt = RowAction::kDrop});
    CHECK(dataset.report.kept_with == std::map<std::string, Ids>{{"chosen equals rejected", {2}}});
    CHECK(dataset.report.dropped == std::map<std::string, Ids>{{"long prompt", {3, 4}}});
  }
  SECTION("the total budget makes a prompt long as well") {
    const Dataset dataset =
        file.load({.max_prompt_length = 0, .max_length = 8, .long_prompt = RowAction::kDrop});
    CHECK(dataset.report.dropped ==
          std::map<std::string, Ids>{{"chosen equals rejected", {2, 4}}, {"long prompt", {3}}});
  }
}

TEST_CASE("rows where a completion has nothing to predict or be predicted by", "[data]") {
  SECTION("an empty prompt needs a begin token") {
    const RowFile file(R"({"prompt": "", "chosen": "b", "rejected": "c"})");
    CHECK(shown(file.load().pairs) == std::vector<std::string>{"<|b>|c>"});
    CHECK_THROWS_TEXT(file.load({.add_bos = false}), DataError,
                      file.path() +
                          ": expected a usable row, got none in 1 read; "
                          "dropped 1 row: empty prompt (line 1)");
  }
  SECTION("given ids") {
    const RowFile file(R"({"prompt_ids": [97], "chosen_ids": [257], "rejected_ids": [98]}
{"prompt_ids": [97], "chosen_ids": [98], "rejected_ids": []}
{"prompt_ids": [], "chosen_ids": [98], "rejected_ids": [99]}
{"prompt_ids": [97], "chosen_ids": [32], "rejected_ids": [99]}
)");
    const Dataset dataset = file.load();
    CHECK(shown(dataset.pairs) == std::vector<std::string>{"a| |c"});
    CHECK(dataset.report.summary() ==
          "dropped 2 rows: empty completion (lines 1, 2)\ndropped 1 row: empty prompt (line 3)");
  }
}

TEST_CASE("rows with one completion load where no pair is needed", "[data]") {
  const RowFile file(R"({"prompt": "a", "completion": "b"}
{"text": "cd"}
{"prompt": "a", "chosen": "b", "rejected": "b"}
{"prompt": "a", "chosen": "b", "rejected": ""}
{"prompt": "a", "completion": ""}
)");
  const Dataset dataset = file.load({}, /*need_rejected=*/false);
  CHECK(shown(dataset.pairs) == std::vector<std::string>{"<a|b>|", "<|cd>|", "<a|b>|", "<a|b>|"});
  // Without their rejected completions, three of the rows are one.
  CHECK(dataset.report.summary() ==
        "dropped 1 row: empty completion (line 5)\n"
        "kept 2 rows: same as an earlier row (lines 3, 4)");
}

TEST_CASE("max_rows counts rows that were read", "[data]") {
  const RowFile file(R"({"prompt": "a", "chosen": "b", "rejected": "c"}

{"prompt": "a", "chosen": "b", "rejected": "b"}
{"prompt": "a", "chosen": "b", "rejected": "d"}
not JSON
)");
  const auto kept = [&](std::int64_t max_rows) {
    const Dataset dataset = file.load({.max_rows = max_rows});
    return std::pair(dataset.report.rows_read, dataset.report.rows_kept);
  };
  CHECK(kept(1) == std::pair<std::int64_t, std::int64_t>(1, 1));
  CHECK(kept(2) == std::pair<std::int64_t, std::int64_t>(2, 1));
  CHECK(kept(3) == std::pair<std::int64_t, std::int64_t>(3, 2));
  CHECK(kept(9) == std::pair<std::int64_t, std::int64_t>(4, 2));
  CHECK(kept(0) == std::pair<std::int64_t, std::int64_t>(4, 2));
}

TEST_CASE("a file without a usable row is refused with its reasons", "[data]") {
  const RowFile empty("\n\n");
  CHECK_THROWS_TEXT(empty.load(), DataError,
                    empty.path() + ": expected a usable row, got no row at all");
  const RowFile bad(R"({"prompt": "a", "chosen": "", "rejected": "c"}
{"prompt": "a", "chosen": "b", "rejected": "b"}
{"prompt": "a", "chosen": "", "rejected": "c"}
)");
  CHECK_THROWS_TEXT(bad.load(), DataError,
                    bad.path() +
                        ": expected a usable row, got none in 3 read; "
                        "dropped 1 row: chosen equals rejected (line 2); "
                        "dropped 2 rows: empty completion (lines 1, 3)");
  const TempDir dir;
  CHECK_THROWS_TEXT(load_dataset(dir.file("none"), ByteTokenizer(), {}), DataError,
                    dir.file("none") + ": expected a readable file, got No such file or directory");
}

TEST_CASE("data options are checked", "[data]") {
  const RowFile file(R"({"prompt": "a", "chosen": "b", "rejected": "c"})");
  CHECK_THROWS_TEXT(file.load({.unusable = RowAction::kKeep}), ConfigError,
                    "load_dataset: expected unusable to be 'error' or 'drop', got 'keep'; there is "
                    "nothing to keep");
  CHECK_THROWS_TEXT(file.load({.max_length = 1}), ConfigError,
                    "load_dataset: expected max_length 0 or at least 2, got 1; a row is a prompt "
                    "and a completion token");
  CHECK_THROWS_TEXT(file.load({.max_prompt_length = -1}), ConfigError,
                    "load_dataset: expected max_prompt_length >= 0, got -1");
  RowReport report;
  CHECK_THROWS_TEXT(tokenize_row({}, ByteTokenizer(), {.max_rows = -3}, report), ConfigError,
                    "tokenize_row: expected max_rows >= 0, got -3");
  CHECK_THROWS_TEXT(options_from_json<DataOptions>(R"({"unusable": "keep"})", "data"), ConfigError,
                    "data: expected unusable to be one of 'error', 'drop', got 'keep'");

  const auto options = options_from_json<DataOptions>(
      R"({"train": "t", "eval": "e", "eval_fraction": 0.25, "max_rows": 7, "max_prompt_length": 5,
          "max_completion_length": 6, "max_length": 9, "add_bos": false, "add_eos": false,
          "truncation": "keep_start", "end_of_cut": "mask", "loss_on": "last",
          "repeated_prompt": "keep", "special_tokens_in_text": "split", "long_context": "error",
          "unusable": "error", "identical": "keep", "long_prompt": "drop"})",
      "data");
  CHECK(options.train == "t");
  CHECK(options.eval == "e");
  CHECK(options.eval_fraction == 0.25);
  CHECK(options.max_rows == 7);
  CHECK(options.max_prompt_length == 5);
  CHECK(options.max_completion_length == 6);
  CHECK(options.max_length == 9);
  CHECK_FALSE(options.add_bos);
  CHECK_FALSE(options.add_eos);
  CHECK(options.truncation == Truncation::kKeepStart);
  CHECK(options.end_of_cut == EndOfCut::kMask);
  CHECK(options.loss_on == LossOn::kLast);
  CHECK(options.repeated_prompt == RepeatedPrompt::kKeep);
  CHECK(options.special_tokens_in_text == SpecialTokens::kSplit);
  CHECK(options.long_context == RowAction::kError);
  CHECK(options.unusable == RowAction::kError);
  CHECK(options.identical == RowAction::kKeep);
  CHECK(options.long_prompt == RowAction::kDrop);
}

TEST_CASE("a defect has its own policy, or that of unusable rows", "[data]") {
  const RowFile file(R"({"prompt": "a", "chosen": "b", "rejected": "c"}
{"prompt": "a", "chosen": "", "rejected": "c"}
{"prompt": "a", "chosen": ")"
                     "\xFF"
                     R"(", "rejected": "b"}
{"prompt": "a", "chosen": "b"}
{"prompt": "a", "chosen": "b", "rejected": "c"}
)");
  const Dataset kept = file.load({.unusable = RowAction::kError,
                                  .missing_key = DefectPolicy::kDrop,
                                  .invalid_utf8 = DefectPolicy::kKeep,
                                  .empty_completion = DefectPolicy::kKeep});
  // U+FFFD is three bytes.
  CHECK(shown(kept.pairs) ==
        std::vector<std::string>{"<a|b>|c>", "<a|>|c>", "<a|\xEF\xBF\xBD>|b>", "<a|b>|c>"});
  CHECK(kept.lines == Ids{1, 2, 3, 5});
  CHECK(kept.report.summary() ==
        "dropped 1 row: expected a key 'rejected' (line 4)\n"
        "kept 1 row: empty completion (line 2)\n"
        "kept 1 row: invalid UTF-8 (line 3)\n"
        "kept 1 row: same as an earlier row (line 5)");

  const Dataset once = file.load({.duplicate = RowAction::kDrop});
  CHECK(once.lines == Ids{1});
  CHECK(once.report.dropped.at("same as an earlier row") == Ids{5});

  const auto refused = [&](const DataOptions& options, const std::string& sentence) {
    CHECK_THROWS_TEXT(file.load(options), DataError, file.path() + sentence);
  };
  refused({.empty_completion = DefectPolicy::kError},
          ":2: expected a usable row, got one with 'empty completion'; the option empty_completion "
          "= 'drop' leaves such rows out");
  refused({.invalid_utf8 = DefectPolicy::kError},
          ":3: expected UTF-8 text, got the byte 0xff at offset 27");
  refused({.missing_key = DefectPolicy::kError},
          ":4: expected a key 'rejected', got {chosen, prompt}");
  refused({.duplicate = RowAction::kError},
          ":5: expected a usable row, got one with 'same as an earlier row'; the option duplicate "
          "= 'drop' leaves such rows out");
}

TEST_CASE("an empty completion without an end token cannot be kept", "[data]") {
  const RowFile file(R"({"prompt": "a", "chosen": "", "rejected": "c"}
{"prompt": "a", "chosen": "b", "rejected": "c"}
)");
  const Dataset dataset = file.load({.add_eos = false, .empty_completion = DefectPolicy::kKeep});
  CHECK(dataset.report.summary() == "dropped 1 row: empty completion (line 1)");
}

TEST_CASE("the held-out part is the end of the file", "[data]") {
  const auto make = [](std::int64_t count) {
    std::vector<TokenRow> pairs(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) pairs[static_cast<std::size_t>(i)].prompt = {i};
    return pairs;
  };
  struct Case {
    std::int64_t rows;
    double fraction;
    std::size_t held_out;
  };
  const Case cases[] = {{10, 0, 0},  {10, 0.2, 2},  {100, 0.29, 29}, {10, 0.01, 1},
                        {2, 0.9, 1}, {10, 0.99, 9}, {1, 0.5, 0},     {0, 0.5, 0}};
  for (const auto& c : cases) {
    INFO(c.rows << " rows, " << c.fraction);
    const auto [train, held_out] = split_dataset(make(c.rows), c.fraction);
    CHECK(held_out.size() == c.held_out);
    Ids order;
    for (const auto* part : {&train, &held_out}) {
      for (const auto& pair : *part) order.push_back(pair.prompt.at(0));
    }
    Ids expected(static_cast<std::size_t>(c.rows));
    std::iota(expected.begin(), expected.end(), 0);
    CHECK(order == expected);
  }
  CHECK_THROWS_TEXT(split_dataset(make(3), 1), ConfigError,
                    "split_dataset: expected eval_fraction in [0, 1), got 1");
  CHECK_THROWS_TEXT(split_dataset(make(3), std::nan("")), ConfigError,
                    "split_dataset: expected eval_fraction in [0, 1), got nan");
}

TEST_CASE("rows of messages end in the token that ends a turn", "[data]") {
  const auto tokenizer = make_tokenizer(PREFOPT_TEST_DATA_DIR "/tokenizers/smollm2");
  const std::int64_t end = tokenizer->encode("<|im_end|>").at(0);
  const RowFile file(R"({"prompt": [{"role": "user", "content": "Hi"}], )"
                     R"("chosen": [{"role": "assistant", "content": "Yes, yes, yes"}], )"
                     R"("rejected": [{"role": "assistant", "content": "No"}]})"
                     "\n"
                     R"({"prompt": [{"role": "user", "content": "Hi"}], )"
                     R"("chosen": [{"role": "assistant", "content": "Yes"}], )"
                     R"("rejected": [{"role": "assistant", "content": ""}]})"
                     "\n");
  DataOptions options = {
      .max_completion_length = 4, .end_of_cut = EndOfCut::kKeep, .chat_format = "chatml"};
  const Dataset dataset = load_dataset(file.path(), *tokenizer, options);
  REQUIRE(dataset.pairs.size() == 1);
  const TokenRow& pair = dataset.pairs[0];
  CHECK(pair.prompt ==
        tokenizer->encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"));
  CHECK(pair.chosen.size() == 4);
  CHECK(pair.chosen.back() == end);
  Ids rejected = tokenizer->encode("No");
  rejected.push_back(end);
  CHECK(pair.rejected == rejected);
  CHECK(dataset.report.summary() ==
        "dropped 1 row: empty completion (line 2)\ntruncated 1 completion (line 1)");
}

TEST_CASE("chat formats need a tokenizer and a name that fit", "[data]") {
  const RowFile file(
      R"({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]})");
  const auto load = [&](const std::string& format) {
    return file.load({.chat_format = format}, false);
  };
  CHECK_THROWS_TEXT(load("chatml"), ConfigError,
                    "chat_format: expected a format whose end of turn is one token of the "
                    "tokenizer 'byte', got '<|im_end|>', which is 10");
  CHECK_THROWS_AS(load("chatlm"), ConfigError);
  CHECK(shown(load("plain").pairs.at(0)) == "<Hi\n\n|Yo>|");
}

TEST_CASE("a dataset does not depend on the number of threads", "[data]") {
  std::string rows;
  for (int i = 0; i < 9000; ++i) {
    const std::string text(static_cast<std::size_t>(i % 37), 'x');
    rows += i % 100 == 7 ? "broken\n"
                         : R"({"prompt": "p)" + text + R"(", "chosen": "c)" + std::to_string(i) +
                               R"(", "rejected": "r)" + text + "\"}\n";
  }
  const RowFile file(rows);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Dataset one = file.load();
  at::set_num_threads(4);
  const Dataset four = file.load();
  std::string error;
  try {
    file.load({.unusable = RowAction::kError});
  } catch (const DataError& thrown) {
    error = thrown.what();
  }
  at::set_num_threads(threads);
  CHECK(error.starts_with(file.path() + ":8: expected JSON"));  // the first of many
  CHECK(one.report.summary() == four.report.summary());
  CHECK(one.report.rows_read == 9000);
  CHECK(one.report.dropped == four.report.dropped);
  REQUIRE(one.pairs.size() == four.pairs.size());
  bool equal = true;
  for (std::size_t i = 0; i < one.pairs.size(); ++i) {
    equal &= one.pairs[i].prompt == four.pairs[i].prompt &&
             one.pairs[i].chosen == four.pairs[i].chosen &&
             one.pairs[i].rejected == four.pairs[i].rejected;
  }
  CHECK(equal);
}
