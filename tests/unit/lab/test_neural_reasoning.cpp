// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "lab/experiment.h"
#include "lab/neural_experiments.h"
#include "lab/reasoning_steps.h"
#include "prefopt/data/tokenizer.h"
#include "support/catch.h"

namespace prefopt::lab {
namespace {

TEST_CASE("lab: the first wrong step of a solution", "[lab]") {
  const std::string prompt = "7+5-3+4:";  // 2;9;3.
  CHECK(first_wrong_step(prompt, "2;9;3.") == 3);
  CHECK(first_wrong_step(prompt, "4;1;5.") == 0);  // the rest follows from it
  CHECK(first_wrong_step(prompt, "2;8;2.") == 1);
  CHECK(first_wrong_step(prompt, "2;9;4.") == 2);
  CHECK(first_wrong_step(prompt, "4;1;3.") == 0);  // cancelled by a second error
}

TEST_CASE("lab: wrong answers are whole solutions with another end", "[lab]") {
  const std::vector<std::string> texts{"2;9;3.", "2;9;4.", "4;1;3.", "2;9;", "2;9.4.", "x;9;4."};
  std::vector<std::vector<std::int64_t>> answers;
  for (const std::string& text : texts) answers.push_back(ByteTokenizer().encode(text));
  const WrongAnswers wrong = wrong_answers({6, "7+5-3+4:"}, answers);
  REQUIRE(wrong.answers.size() == 1);
  CHECK(wrong.answers[0] == answers[1]);
  CHECK(wrong.prompts[0] == ByteTokenizer().encode("7+5-3+4:"));
  CHECK(wrong.first_wrong == std::vector<std::size_t>{2});
}

// A brief training learns too little for claims about success; that all have as many sampled tokens
// does not depend on it.
TEST_CASE("lab: the arms of the reasoning task draw as many tokens", "[lab]") {
  const Report report = neural_reasoning::run({.quick = true, .seeds = {0, 1}}, Length::kBrief);
  REQUIRE(report.verdicts.size() >= 6);
  CHECK(report.verdicts.front().claim == "tokens of completions over those of the search");
  CHECK(report.verdicts.front().holds);
  for (const Verdict& verdict : report.verdicts) CHECK(std::isfinite(verdict.measured.value));
  REQUIRE(report.data.size() == 1);
  for (const auto& row : report.data[0].rows) CHECK(row.size() == report.data[0].columns.size());
}

TEST_CASE("lab: the reasoning task's claims hold as documented", "[lab][.long]") {
  const Report report = neural_reasoning::run({.seeds = {0, 3}}, Length::kWhole);
  for (const Verdict& verdict : report.verdicts) WARN(to_line(verdict));
  CHECK(report.verdicts.front().holds);
}

}  // namespace
}  // namespace prefopt::lab
