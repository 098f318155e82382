// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <string>

#include "prefopt/data/dataset.h"
#include "prefopt/data/verifiable_task.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/temp_dir.h"

namespace prefopt {
namespace {

TEST_CASE("sums are done a number at a time", "[data]") {
  CHECK(VerifiableTask::solve("7+5-3+4:") == "2;9;3.");
  CHECK(VerifiableTask::solve("0-1:") == "9.");
  CHECK(VerifiableTask::solve("1-9-9:") == "2;3.");
}

TEST_CASE("a solution is right by its last digit and its form", "[data]") {
  CHECK(VerifiableTask::is_right("7+5-3+4:", "2;9;3."));
  CHECK(VerifiableTask::is_right("7+5-3+4:", "0;1;3."));  // errors that cancel
  for (const char* wrong :
       {"2;9;4.", "2;9;3", "2;9;3;", "2;9.", "2;9;3.0", "", "2,9;3.", "a;9;3."}) {
    CAPTURE(wrong);
    CHECK_FALSE(VerifiableTask::is_right("7+5-3+4:", wrong));
  }
}

TEST_CASE("texts that are no prompts of the task are refused", "[data]") {
  for (const char* text : {"", ":", "7:", "7+:", "7+5", "+5:", "7*5:", "7+5-:", "77+5:", "7+5::"}) {
    CAPTURE(text);
    CHECK_THROWS_TEXT(
        VerifiableTask::solve(text), DataError,
        "VerifiableTask: expected a prompt such as '7+5-3+4:', got '" + std::string(text) + "'");
  }
}

TEST_CASE("demonstrations are wrong as often as they should", "[data]") {
  constexpr int kDraws = 4000;
  for (const double rate : {0.0, 0.2, 1.0}) {
    VerifiableTask task({.terms = 4, .error_rate = rate, .seed = 3});
    int right = 0;
    int whole = 0;
    for (int i = 0; i < kDraws; ++i) {
      const std::string prompt = task.sample_prompt();
      CHECK(prompt.size() == 8);
      const std::string solution = task.sample_solution(prompt);
      right += solution == VerifiableTask::solve(prompt) ? 1 : 0;
      whole += VerifiableTask::is_right(prompt, solution) ? 1 : 0;
    }
    const double expected = std::pow(1 - rate, 3);
    CHECK(std::abs(right / static_cast<double>(kDraws) - expected) <=
          4 * std::sqrt(expected * (1 - expected) / kDraws));
    CHECK(whole >= right);
  }
}

TEST_CASE("a seed of the task of sums gives the same files", "[data]") {
  const testing_support::TempDir dir;
  for (const char* name : {"a", "b"}) {
    VerifiableTask task({.seed = 9});
    task.write_sft(dir.file(std::string(name) + ".jsonl"), 5);
    task.write_prompts(dir.file(std::string(name) + "-prompts.jsonl"), 5);
  }
  CHECK(testing_support::bytes_of(dir.file("a.jsonl")) ==
        testing_support::bytes_of(dir.file("b.jsonl")));
  CHECK(testing_support::bytes_of(dir.file("a-prompts.jsonl")) ==
        testing_support::bytes_of(dir.file("b-prompts.jsonl")));
  int rows = 0;
  for_each_line(dir.file("a.jsonl"), [&](std::int64_t, std::string_view line) {
    CHECK(parse_row(line, "a").prompt.size() == 10);
    ++rows;
  });
  CHECK(rows == 5);
  VerifiableTask task;
  CHECK_THROWS_TEXT(task.write_sft(dir.file("c"), 0), ConfigError,
                    "VerifiableTask::write_sft: expected at least 1 row, got 0");
  CHECK_THROWS_TEXT(VerifiableTask({.terms = 1}), ConfigError,
                    "VerifiableTask: expected terms in [2, 100], got 1");
}

}  // namespace
}  // namespace prefopt
