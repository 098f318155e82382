// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/leaks.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"

namespace prefopt {
namespace {

using Ids = std::vector<std::int64_t>;

TokenRow pair(Ids prompt, Ids chosen, Ids rejected) {
  return {std::move(prompt), std::move(chosen), std::move(rejected)};
}

Dataset training() {
  return {.pairs = {pair({1}, {2}, {3}), pair({1, 1}, {2}, {3}), pair({7}, {2}, {3}),
                    pair({7}, {2}, {4}), pair({7}, {2}, {3})},
          .lines = {1, 3, 4, 8, 9},
          .report = {}};
}

// The second row is one of training(); the last has the prompt of its first row.
Dataset held_out() {
  return {
      .pairs = {pair({7}, {5}, {6}), pair({7}, {2}, {4}), pair({9}, {2}, {3}), pair({1}, {3}, {2})},
      .lines = {1, 2, 5, 6},
      .report = {}};
}

TEST_CASE("leaks are found by prompt and by whole row", "[data]") {
  const auto leaks = find_leaks(training().pairs, held_out().pairs);
  REQUIRE(leaks.size() == 4);
  const std::vector<std::vector<std::size_t>> expected = {
      {0, 3, 0}, {2, 0, 0}, {3, 1, 1}, {4, 0, 0}};
  for (std::size_t i = 0; i < leaks.size(); ++i) {
    CAPTURE(i);
    CHECK(leaks[i].train == expected[i][0]);
    CHECK(leaks[i].held_out == expected[i][1]);
    CHECK(leaks[i].whole_row == (expected[i][2] == 1));
  }
  CHECK(find_leaks(training().pairs, {}).empty());
}

TEST_CASE("a column that differs makes another row", "[data]") {
  auto train = training().pairs;
  train[3].columns[Column::kMargin] = 1;
  CHECK_FALSE(find_leaks(train, held_out().pairs)[2].whole_row);
  auto held = held_out().pairs;
  held[1].columns[Column::kMargin] = 1;
  CHECK(find_leaks(train, held)[2].whole_row);
}

TEST_CASE("leaks are kept, dropped or refused, and said", "[data]") {
  Dataset kept = training();
  CHECK(apply_leak_policy(kept, held_out(), RowAction::kKeep, "t.jsonl") ==
        "kept 4 rows: prompt of a held-out row (lines 1, 4, 8, 9)");
  CHECK(kept.pairs.size() == 5);

  Dataset dropped = training();
  CHECK(apply_leak_policy(dropped, held_out(), RowAction::kDrop, "t.jsonl") ==
        "dropped 4 rows: prompt of a held-out row (lines 1, 4, 8, 9)");
  REQUIRE(dropped.pairs.size() == 1);
  CHECK(dropped.pairs[0].prompt == Ids{1, 1});
  CHECK(dropped.lines == Ids{3});

  Dataset refused = training();
  CHECK_THROWS_TEXT(
      apply_leak_policy(refused, held_out(), RowAction::kError, "t.jsonl"), DataError,
      "t.jsonl:1: expected a prompt that is not held out, got that of line 6 of the held-out rows; "
      "the option leak = 'drop' leaves such rows out of training");
  CHECK_THROWS_TEXT(apply_leak_policy(refused, training(), RowAction::kDrop, "t.jsonl"), DataError,
                    "t.jsonl: expected a row to train on, got none: the prompts of all 5 are held "
                    "out");
  CHECK(apply_leak_policy(refused, {}, RowAction::kError, "t.jsonl") == "");
}

}  // namespace
}  // namespace prefopt
