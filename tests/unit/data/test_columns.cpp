// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <string>

#include "prefopt/data/dataset.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"

namespace prefopt {
namespace {

using Ids = std::vector<std::int64_t>;

class Rows {
 public:
  explicit Rows(std::string_view text) : path(dir_.file("rows.jsonl")) {
    std::ofstream(path, std::ios::binary) << text;
  }
  Dataset load(const RowNeeds& needs, const DataOptions& options = {}) const {
    return load_dataset(path, ByteTokenizer(), options, needs);
  }

 private:
  testing_support::TempDir dir_;

 public:
  const std::string path;
};

constexpr std::string_view kPair = R"({"prompt": "a", "chosen": "b", "rejected": "c")";
const RowNeeds kUnpaired{.rejected = false, .columns = {Column::kLabel}};

std::string pair_with(const std::string& more) { return std::string(kPair) + more + "}\n"; }

}  // namespace

TEST_CASE("columns are read as numbers", "[data]") {
  const PreferenceRow row = parse_row(
      pair_with(R"(, "margin": -1.5, "weight": 0, "label_prob": 0.75, "chosen_win_rate": 1,
                   "rejected_win_rate": 0.25, "advantage": -3.5, "from_reference": 2)"),
      "row");
  CHECK(row.columns[Column::kAdvantage] == -3.5);
  CHECK(row.columns[Column::kFromReference] == 2);
  CHECK(row.columns[Column::kMargin] == -1.5);
  CHECK(row.columns[Column::kWeight] == 0);
  CHECK(row.columns[Column::kLabelProb] == 0.75);
  CHECK(row.columns[Column::kChosenWinRate] == 1);
  CHECK(row.columns[Column::kRejectedWinRate] == 0.25);
  CHECK(std::isnan(row.columns[Column::kLabel]));

  const auto margin = [](const std::string& more) {
    return parse_row(pair_with(more), "row").columns[Column::kMargin];
  };
  CHECK(margin(R"(, "score_chosen": 8.5, "score_rejected": 6)") == 2.5);
  CHECK(margin(R"(, "score_chosen": 8.5, "score_rejected": 6, "margin": 1)") == 1);
  for (const auto& [text, value] : {std::pair{"true", 1.0}, {"false", 0.0}, {"1", 1.0}}) {
    CHECK(parse_row(R"({"prompt": "a", "completion": "b", "label": )" + std::string(text) + "}",
                    "row")
              .columns[Column::kLabel] == value);
  }
}

TEST_CASE("columns out of their range are refused by name", "[data]") {
  const auto refused = [](Column column, const std::string& more, const std::string& text) {
    const Rows rows(pair_with(more));
    const RowNeeds needs{.columns = {column}};
    CHECK_THROWS_TEXT(rows.load(needs, {.unusable = RowAction::kError}), DataError,
                      rows.path + ":1: " + text);
    // Nothing that does not read the column minds.
    CHECK(std::isnan(rows.load({}).pairs.at(0).columns[column]));
    CHECK(std::isnan(parse_row(pair_with(more), "f:3").columns[column]));
    // Where the mapping names it, it is read.
    const auto name = fmt::format("\"{}\"", more.find("score_chosen") != std::string::npos
                                                ? "score_chosen"
                                                : kColumnKeys[static_cast<std::size_t>(column)]);
    const DataOptions mapped{.unusable = RowAction::kError,
                             .columns = "{" + name + ": " + name + "}"};
    CHECK_THROWS_TEXT(rows.load({}, mapped), DataError, rows.path + ":1: " + text);
  };
  refused(Column::kWeight, R"(, "weight": -1)",
          "expected 'weight' to be a number of at least 0, got -1");
  refused(Column::kLabelProb, R"(, "label_prob": 1.5)",
          "expected 'label_prob' to be a number in [0, 1], got 1.5");
  refused(Column::kChosenWinRate, R"(, "chosen_win_rate": "high")",
          "expected 'chosen_win_rate' to be a number in [0, 1], got \"high\"");
  refused(Column::kFromReference, R"(, "from_reference": 0.5)",
          "expected 'from_reference' to be 0, 1 (chosen) or 2 (rejected), got 0.5");
  refused(Column::kFromReference, R"(, "from_reference": "chosen")",
          "expected 'from_reference' to be a number, got \"chosen\"");
  refused(Column::kMargin, R"(, "margin": [1])", "expected 'margin' to be a number, got list");
  refused(Column::kMargin, R"(, "margin": -Infinity)",
          "expected 'margin' free of NaN and Infinity (not a number), got one of them");
  refused(Column::kMargin, R"(, "score_chosen": NaN, "score_rejected": 1)",
          "expected 'score_chosen' free of NaN and Infinity (not a number), got one of them");

  const Rows label(R"({"prompt": "a", "completion": "b", "label": 0.5})"
                   "\n");
  CHECK_THROWS_TEXT(label.load(kUnpaired, {.unusable = RowAction::kError}), DataError,
                    label.path + ":1: expected 'label' to be true, false, 1 or 0, got 0.5");
}

TEST_CASE("an advantage belongs to a single completion", "[data]") {
  const RowNeeds needs{.rejected = false, .columns = {Column::kAdvantage}};
  const Rows rows(R"({"prompt": "a", "completion": "b", "advantage": -0.25})"
                  "\n" +
                  pair_with(R"(, "advantage": 1)") +
                  R"({"prompt": "a", "completion": "b"})"
                  "\n");
  const Dataset dataset = rows.load(needs);
  REQUIRE(dataset.pairs.size() == 1);
  CHECK(dataset.pairs[0].columns[Column::kAdvantage] == -0.25);
  CHECK(dataset.report.dropped.at("expected one completion and its advantage") == Ids{2});
  CHECK(dataset.report.dropped.at("expected a key 'advantage'") == Ids{3});
}

TEST_CASE("a null is a column that is not there", "[data]") {
  const Rows rows(pair_with(R"(, "margin": null, "score_chosen": 3, "score_rejected": 1)") +
                  pair_with(R"(, "margin": null)") +
                  pair_with(R"(, "margin": 1, "gold": null, "prompt_ids": null, "text": null)"));
  const Dataset dataset = rows.load({.columns = {Column::kMargin}});
  CHECK(dataset.report.dropped.at("expected a key 'margin'") == Ids{2});
  REQUIRE(dataset.pairs.size() == 2);
  CHECK(dataset.pairs[0].columns[Column::kMargin] == 2);
  CHECK(dataset.pairs[1].columns[Column::kMargin] == 1);
  CHECK(rows.load({}).pairs.size() == 3);
}

TEST_CASE("a gold completion stands next to the pair", "[data]") {
  const Rows rows(
      pair_with(R"(, "gold": "gg")") +
      R"({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "gold_ids": [4]})");
  const Dataset with = rows.load({.gold = true}, {.add_eos = false});
  CHECK(with.pairs[0].gold == Ids{'g', 'g'});
  CHECK(with.pairs[1].gold == Ids{4});
  CHECK(rows.load({}).pairs[0].gold.empty());
  const Rows none(pair_with("") + pair_with(R"(, "gold": "g")"));
  CHECK(none.load({.gold = true}).report.dropped.at("expected a key 'gold'") == Ids{1});
  const PreferenceRow talk = parse_row(
      R"({"prompt": [{"role": "user", "content": "q"}],
          "chosen": [{"role": "assistant", "content": "c"}],
          "rejected": [{"role": "assistant", "content": "r"}],
          "gold": [{"role": "assistant", "content": "g"}]})",
      "row");
  CHECK(talk.gold == std::string(" g"));
  CHECK_THROWS_TEXT(parse_row(R"({"chosen": "ab", "rejected": "ac", "gold": "ad"})", "row"),
                    DataError,
                    "row: expected a key 'prompt' next to 'gold', got {chosen, gold, rejected}");
}

TEST_CASE("rows without a needed column are unusable", "[data]") {
  const Rows rows(pair_with("") + pair_with(R"(, "margin": 2)"));
  const Dataset dataset = rows.load({.columns = {Column::kMargin}});
  CHECK(dataset.report.dropped.at("expected a key 'margin'") == Ids{1});
  REQUIRE(dataset.pairs.size() == 1);
  CHECK(dataset.pairs[0].columns[Column::kMargin] == 2);
}

TEST_CASE("pairs and single completions are not mixed up", "[data]") {
  const Rows paired(pair_with("") + pair_with(""));
  CHECK_THROWS_TEXT(
      paired.load(kUnpaired), ConfigError,
      paired.path +
          ": expected rows of one completion and a label, which the loss is for, got pairs");
  const Rows single(R"({"prompt": "a", "completion": "b", "label": true})"
                    "\n");
  CHECK_THROWS_TEXT(
      single.load({}), ConfigError,
      single.path + ": expected pairs, which the loss compares, got rows of one completion");
  const Dataset dataset = single.load(kUnpaired);
  REQUIRE(dataset.pairs.size() == 1);
  CHECK(dataset.pairs[0].columns[Column::kLabel] == 1);
  CHECK(dataset.pairs[0].rejected.empty());
}

TEST_CASE("the token cache keeps columns and gold completions", "[data]") {
  const Rows rows(pair_with(R"(, "gold": "gg", "margin": 2.5)"));
  const testing_support::TempDir cache;
  const DataOptions options{.token_cache = cache.file("tokens")};
  const RowNeeds needs{.gold = true, .columns = {Column::kMargin}};
  const Dataset made = rows.load(needs, options);
  const Dataset kept = rows.load(needs, options);
  CHECK(kept.report.cache_note.starts_with("tokens are those kept in "));
  CHECK(kept.pairs[0].gold == made.pairs[0].gold);
  CHECK(kept.pairs[0].columns[Column::kMargin] == 2.5);
  CHECK(std::isnan(kept.pairs[0].columns[Column::kWeight]));
  CHECK(rows.load({}, options).report.cache_note.empty());
}

TEST_CASE("token ids may have weights", "[data]") {
  const Rows rows(
      R"({"prompt_ids": [1], "chosen_ids": [2, 3, 257], "chosen_token_weights": [0, 0.5, 2],)"
      R"( "rejected_ids": [4], "gold_ids": [5, 6], "gold_token_weights": [1, 3]})"
      "\n"
      R"({"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]})"
      "\n");
  const Dataset pairs = rows.load({});
  CHECK(pairs.pairs[0].chosen_weights == TokenWeights{0, 0.5, 2});
  CHECK(pairs.pairs[0].rejected_weights.empty());
  CHECK(pairs.pairs[0].gold_weights.empty());  // the loss does not see it
  CHECK(pairs.pairs[1].chosen_weights.empty());
  CHECK(rows.load({.gold = true}).pairs.front().gold_weights == TokenWeights{1, 3});
  // A completion that is cut may keep its end token, and that its weight.
  const Dataset cut = rows.load({}, {.max_completion_length = 2, .end_of_cut = EndOfCut::kKeep});
  CHECK(cut.pairs[0].chosen == Ids{2, 257});
  CHECK(cut.pairs[0].chosen_weights == TokenWeights{0, 2});
  CHECK(cut.pairs[1].chosen == Ids{2, 3});

  const Rows single(
      R"({"prompt_ids": [1], "completion_ids": [2, 3], "completion_token_weights": [1, 0],)"
      R"( "label": 1})");
  CHECK(single.load(kUnpaired).pairs[0].chosen_weights == TokenWeights{1, 0});

  const auto refused = [](const std::string& row, const std::string& text) {
    CHECK_THROWS_TEXT(parse_row(row, "f:1"), DataError, "f:1: " + text);
  };
  const std::string ids = R"({"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4],)";
  const std::string expected =
      "expected 'chosen_token_weights' to be 2 numbers of at least 0, one a token, got ";
  refused(ids + R"("chosen_token_weights": [1]})", expected + "[1]");
  refused(ids + R"("chosen_token_weights": [1, -1]})", expected + "[1,-1]");
  refused(ids + R"("chosen_token_weights": [1, "2"]})", expected + "[1,\"2\"]");
  refused(ids + R"("chosen_token_weights": 1})", expected + "number");
  refused(pair_with(R"(, "chosen_token_weights": [1])"),
          "expected 'chosen_token_weights' next to 'chosen_ids', got {chosen, "
          "chosen_token_weights, prompt, rejected}");
  refused(ids + R"("completion_token_weights": [1, 1]})",
          "expected 'completion_token_weights' next to 'completion_ids', got {chosen_ids, "
          "completion_token_weights, prompt_ids, rejected_ids}");
}

TEST_CASE("the token cache keeps the weights of tokens", "[data]") {
  const Rows rows(R"({"prompt_ids": [1], "chosen_ids": [2, 3], "chosen_token_weights": [0.25, 2],)"
                  R"( "rejected_ids": [4]})");
  const testing_support::TempDir cache;
  const DataOptions options{.token_cache = cache.file("tokens")};
  (void)rows.load({}, options);
  const Dataset kept = rows.load({}, options);
  CHECK(kept.report.cache_note.starts_with("tokens are those kept in "));
  CHECK(kept.pairs[0].chosen_weights == TokenWeights{0.25, 2});
  CHECK(kept.pairs[0].rejected_weights.empty());
}

TEST_CASE("rows that differ in the weights of their tokens are no duplicates", "[data]") {
  const std::string row = R"({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3])";
  const Rows rows(row + "}\n" + row + R"(, "chosen_token_weights": [2]})" + "\n" + row +
                  R"(, "chosen_token_weights": [2]})");
  CHECK(rows.load({}, {.duplicate = RowAction::kDrop}).pairs.size() == 2);
}

}  // namespace prefopt
