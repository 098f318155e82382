// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <set>

#include "prefopt/data/controlled_task.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"

using namespace prefopt;
using prefopt::testing_support::bytes_of;
using prefopt::testing_support::TempDir;

namespace {

bool all_letters(std::string_view text) {
  return text.find_first_not_of("abcdefghijklmnopqrstuvwxyz") == std::string_view::npos;
}

std::vector<PreferenceRow> rows_of(const std::string& path) {
  std::vector<PreferenceRow> rows;
  for_each_line(
      path, [&](std::int64_t, std::string_view text) { rows.push_back(parse_row(text, path)); });
  return rows;
}

// Four standard deviations of the mean of `draws` coin flips.
double tolerance(double p, int draws) { return 4 * std::sqrt(p * (1 - p) / draws); }

}  // namespace

TEST_CASE("the reward by hand", "[data]") {
  const ControlledTask task;
  CHECK(task.reward("kfa>", "kfakfa") == 4);  // all liked, six letters
  CHECK(task.reward("kfa>", "bcdbcd") == 0);
  CHECK(task.reward("kfa>", "kbabaf") == Approx(4 * 4.0 / 6));
  CHECK(task.reward("kfa>", "kfa") == 4 - 0.25 * 3);       // too short
  CHECK(task.reward("kfa>", "aaaaaaaa") == 4 - 0.25 * 2);  // too long; repeats are liked
  CHECK(task.reward("kfa>", "z") == -0.25 * 5);
  // Anything but letters of a to z, and nothing at all.
  for (const char* bad : {"", "kf a", "kfa>", "KFA", "kf1", "k\xC3\xA9"}) {
    CHECK(task.reward("kfa>", bad) == -4);
  }
  const ControlledTask half({.reward_scale = 2});
  CHECK(half.reward("kfa>", "kfakfa") == 2);
  CHECK(half.reward("kfa>", "") == -2);
}

TEST_CASE("prompts and base responses have their form", "[data]") {
  ControlledTask task({.seed = 3});
  std::set<std::size_t> lengths;
  for (int i = 0; i < 500; ++i) {
    const std::string prompt = task.sample_prompt();
    REQUIRE(prompt.size() == 4);
    CHECK(prompt[3] == '>');
    CHECK(all_letters(prompt.substr(0, 3)));
    CHECK(std::set<char>(prompt.begin(), prompt.end()).size() == 4);
    const std::string response = task.sample_response(prompt);
    CHECK(all_letters(response));
    lengths.insert(response.size());
  }
  CHECK(lengths == std::set<std::size_t>{3, 4, 5, 6, 7, 8, 9});
}

TEST_CASE("the share of the prompt's letters follows prompt_affinity", "[data]") {
  for (double affinity : {0.0, 0.35, 1.0}) {
    ControlledTask task({.prompt_affinity = affinity, .seed = 5});
    int letters = 0;
    int liked = 0;
    while (letters < 20000) {
      for (char letter : task.sample_response("kfa>")) {
        ++letters;
        liked += std::string_view("kfa").find(letter) != std::string_view::npos ? 1 : 0;
      }
    }
    // A letter that is drawn from the alphabet is one of three in 26 by chance.
    const double expected = affinity + (1 - affinity) * 3 / 26;
    INFO(affinity);
    CHECK(std::abs(static_cast<double>(liked) / letters - expected) <=
          tolerance(expected, letters));
  }
}

TEST_CASE("preferences follow Bradley-Terry and the flip rate", "[data]") {
  constexpr int kDraws = 20000;
  // Rewards 4 - 0.75 = 3.25 and 4 * 3 / 5 - 0.25 = 2.15.
  const double bradley_terry = 1 / (1 + std::exp(-(3.25 - 2.15)));
  for (double flip_rate : {0.0, 0.3, 1.0}) {
    ControlledTask task({.flip_rate = flip_rate, .seed = 11});
    int first = 0;
    for (int i = 0; i < kDraws; ++i) first += task.prefers_first("kfa>", "kfa", "kfabb") ? 1 : 0;
    const double expected = bradley_terry * (1 - flip_rate) + (1 - bradley_terry) * flip_rate;
    INFO(flip_rate);
    CHECK(std::abs(static_cast<double>(first) / kDraws - expected) <= tolerance(expected, kDraws));
  }
}

TEST_CASE("files of preferences are rows, the same for a seed", "[data]") {
  const TempDir dir;
  const auto write = [&](const char* name, ControlledTaskOptions options) {
    ControlledTask(options).write_preferences(dir.file(name), 200);
    return bytes_of(dir.file(name));
  };
  const std::string first = write("first", {.seed = 1});
  CHECK(first == write("again", {.seed = 1}));
  CHECK(first != write("other", {.seed = 2}));

  const auto rows = rows_of(dir.file("first"));
  REQUIRE(rows.size() == 200);
  for (const auto& row : rows) {
    CHECK(row.prompt.size() == 4);
    CHECK(all_letters(row.chosen));
    CHECK(all_letters(row.rejected));
    CHECK(row.chosen != row.rejected);
  }

  SECTION("flips turn labels around and leave the texts") {
    write("flipped", {.flip_rate = 1, .seed = 1});
    const auto flipped = rows_of(dir.file("flipped"));
    REQUIRE(flipped.size() == rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      CHECK(flipped[i].prompt == rows[i].prompt);
      CHECK(flipped[i].chosen == rows[i].rejected);
      CHECK(flipped[i].rejected == rows[i].chosen);
    }
  }
  SECTION("the stream is the same on every standard library") {
    // From the definition of mt19937_64 and the draws in order, worked out apart from this code.
    CHECK(first.substr(0, first.find('\n')) ==
          R"({"prompt":"dla>","chosen":"mlcul","rejected":"ahah"})");
  }
}

TEST_CASE("files of single completions are SFT rows", "[data]") {
  const TempDir dir;
  ControlledTask({.seed = 1}).write_sft(dir.file("sft"), 20);
  const auto rows = rows_of(dir.file("sft"));
  REQUIRE(rows.size() == 20);
  for (const auto& row : rows) {
    CHECK_FALSE(row.has_rejected);
    CHECK(row.prompt.size() == 4);
    CHECK((row.chosen.size() >= 3 && row.chosen.size() <= 9));
  }
  ControlledTask({.seed = 1}).write_sft(dir.file("again"), 20);
  CHECK(bytes_of(dir.file("sft")) == bytes_of(dir.file("again")));
}

TEST_CASE("the controlled task refuses what it cannot mean", "[data]") {
  CHECK_THROWS_TEXT(ControlledTask({.reward_scale = 0}), ConfigError,
                    "ControlledTask: expected reward_scale > 0, got 0");
  CHECK_THROWS_TEXT(ControlledTask({.flip_rate = 1.5}), ConfigError,
                    "ControlledTask: expected flip_rate in [0, 1], got 1.5");
  CHECK_THROWS_TEXT(ControlledTask({.prompt_affinity = -1}), ConfigError,
                    "ControlledTask: expected prompt_affinity in [0, 1], got -1");
  CHECK_THROWS_TEXT(ControlledTask({.seed = -1}), ConfigError,
                    "ControlledTask: expected seed >= 0, got -1");
  const TempDir dir;
  ControlledTask task;
  CHECK_THROWS_TEXT(task.write_sft(dir.file("rows"), 0), ConfigError,
                    "ControlledTask::write_sft: expected at least 1 row, got 0");
  CHECK_THROWS_TEXT(task.write_preferences(dir.file("rows"), -2), ConfigError,
                    "ControlledTask::write_preferences: expected at least 1 row, got -2");
  CHECK_THROWS_AS(task.write_sft(dir.file("no/folder/rows"), 1), DataError);
}
