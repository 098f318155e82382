// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <cmath>
#include <filesystem>
#include <string>

#include "prefopt/error.h"
#include "prefopt/evaluation/judge.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"
#include "support/text_files.h"
#include "support/wait.h"

namespace prefopt {
namespace {

using testing_support::comes_true;
using testing_support::is_alive;
using testing_support::read_text;
using testing_support::TempDir;

/// A shell script as a judge; `$line` is the question.
JudgeProgram script(const std::string& body, double timeout = 600) {
  return {.command = {"/bin/sh", "-c", body}, .name = "script", .timeout = timeout};
}

/// Answers each question by `answer`.
JudgeProgram answering(const std::string& answer) {
  return script("while read -r line; do echo '" + answer + "'; done");
}

std::vector<Contest> contests(int count) {
  std::vector<Contest> list;
  for (int i = 0; i < count; ++i) {
    list.push_back({.prompt = "p", .policy = "ours" + std::to_string(i), .reference = "theirs"});
  }
  return list;
}

TEST_CASE("A program judges in both orders", "[evaluation]") {
  // Prefers the completion that it sees `ours` in.
  const auto judge = make_program_judge(script(
      R"(while read -r line; do case "$line" in *'"a":"ours'*) echo '{"winner": "a"}';; *) echo '{"winner": "b"}';; esac; done)"));
  const ContestResult result = judge_contests(*judge, contests(3));
  CHECK(result.contests == 3);
  CHECK(result.wins == 3);
  CHECK(result.inconsistent == 0);
  CHECK(result.win_rate.mean == 1);
  // Wilson's interval of 3 of 3.
  CHECK(result.win_rate.low == Approx(3 / (3 + 3.841458820694124)));
}

TEST_CASE("A judge that likes a place makes ties", "[evaluation]") {
  for (const std::string place : {"a", "b"}) {
    const auto judge = make_program_judge(answering(R"({"winner": ")" + place + R"("})"));
    const ContestResult result = judge_contests(*judge, contests(4));
    CHECK(result.ties == 4);
    CHECK(result.inconsistent == 4);
    CHECK(result.win_rate.mean == 0.5);
  }
  const auto undecided = make_program_judge(answering(R"({"winner": "tie"})"));
  CHECK(judge_contests(*undecided, contests(2)).inconsistent == 0);
}

TEST_CASE("Equal completions are a tie without a question", "[evaluation]") {
  const auto judge = make_program_judge(script("exit 0"));
  const ContestResult result =
      judge_contests(*judge, {{.prompt = "p", .policy = "x", .reference = "x"}});
  CHECK(result.ties == 1);
  CHECK(result.win_rate.mean == 0.5);
}

TEST_CASE("One verdict and a tie win", "[evaluation]") {
  // Says a where `ours` is first, and tie where it is second.
  const auto judge = make_program_judge(script(
      R"(while read -r line; do case "$line" in *'"a":"ours'*) echo '{"winner": "a"}';; *) echo '{"winner": "tie"}';; esac; done)"));
  const ContestResult result = judge_contests(*judge, contests(1));
  CHECK(result.wins == 1);
  CHECK(result.inconsistent == 0);
}

TEST_CASE("A reward judges", "[evaluation]") {
  int calls = 0;
  const auto judge = make_reward_judge([&](const std::string&, const std::string& completion) {
    ++calls;
    return static_cast<double>(completion.size());
  });
  const ContestResult result = judge_contests(
      *judge, {{"p", "long", "no"}, {"p", "no", "long"}, {"p", "ab", "ba"}, {"q", "long", "no"}});
  CHECK(result.wins == 2);
  CHECK(result.losses == 1);
  CHECK(result.ties == 1);
  CHECK(result.inconsistent == 0);
  CHECK(result.win_rate.mean == Approx(2.5 / 4));
  CHECK(calls == 6);  // a completion of a prompt once

  const auto broken =
      make_reward_judge([](const std::string&, const std::string&) { return std::nan(""); });
  CHECK_THROWS_TEXT(broken->compare("p", "x", "y"), DataError,
                    "reward: expected a finite number, got nan");
}

TEST_CASE("A program gives rewards", "[evaluation]") {
  const Reward reward = make_program_reward(script(
      R"(while read -r line; do case "$line" in *good*) echo '{"reward": 1.5}';; *) echo '{"reward": -2}';; esac; done)"));
  CHECK(reward("p", "good") == 1.5);
  CHECK(reward("p", "bad") == -2);
  const Reward wordy = make_program_reward(answering(R"({"reward": "high"})"));
  CHECK_THROWS_TEXT(
      wordy("p", "x"), DataError,
      R"(reward program 'script': expected {"reward": number}, got {"reward":"high"})");
}

TEST_CASE("Texts of any kind reach the program in one line", "[evaluation]") {
  // Gives back the number of bytes of the question.
  const Reward reward =
      make_program_reward(script(R"(while read -r line; do echo "{\"reward\": ${#line}}"; done)"));
  CHECK(reward("a\nb\"", "\\\t") ==
        std::string(R"({"prompt":"a\nb\"","completion":"\\\t"})").size());
  // More than a socket holds at a time.
  const std::string text(1 << 20, 'x');
  CHECK(reward("p", text) == static_cast<double>(text.size()) + 30);
}

TEST_CASE("A judge that fails is named, with what it did", "[evaluation]") {
  const auto check = [](const JudgeProgram& program, const std::string& got) {
    const auto judge = make_program_judge(program);
    CHECK_THROWS_TEXT(judge->compare("p", "x", "y"), DataError, "judge 'script': expected " + got);
  };
  check(script("exit 3"), "an answer, got its end with exit status 3");
  check(script("read -r line; exit 0"), "an answer, got its end with exit status 0");
  check(script("kill -9 $$"), "an answer, got its end by signal 9 (Killed)");
  check(script("exec 1>&- 0<&-; sleep 20"), "an answer, got the end of its output");
  check(answering("well, a"),
        "JSON, got something else: parse error at line 1, column 1: syntax error while parsing "
        "value - "
        "invalid literal; last read: 'w'");
  check(answering(R"({"winner": "c"})"), R"({"winner": "a", "b" or "tie"}, got {"winner":"c"})");
  check(answering(R"(["a"])"), R"({"winner": "a", "b" or "tie"}, got ["a"])");
  check(script("read -r line; head -c 1100000 /dev/zero | tr '\\0' x"),
        "an answer, got a line of more than 1 MiB");
}

TEST_CASE("A judge that says more than it was asked is not believed", "[evaluation]") {
  const auto judge = make_program_judge(
      script(R"(while read -r line; do printf '{"winner": "a"}\n{"winner": "b"}\n'; done)"));
  CHECK(judge->compare("p", "x", "y") == Verdict::kFirst);
  CHECK_THROWS_TEXT(judge->compare("p", "x", "y"), DataError,
                    "judge 'script': expected an answer, got more than one line to a question");
}

TEST_CASE("A judge that hangs is left after its time", "[evaluation]") {
  const TempDir dir;
  const std::string file = dir.file("id");
  pid_t id = 0;
  {
    const auto start = std::chrono::steady_clock::now();
    const auto judge =
        make_program_judge(script("trap '' TERM; echo $$ >" + file + ".new; mv " + file + ".new " +
                                      file + "; while :; do sleep 1; done",
                                  0.3));
    CHECK_THROWS_TEXT(judge->compare("p", "x", "y"), DataError,
                      "judge 'script': expected an answer, got none within 0.3 s");
    CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(300));
    REQUIRE(comes_true([&] { return std::filesystem::exists(file); }));
    id = std::stoi(read_text(file));
    REQUIRE(is_alive(id));
  }
  // It does not listen to SIGTERM either, and is gone all the same.
  CHECK_FALSE(is_alive(id));
}

TEST_CASE("A judge that cannot be started", "[evaluation]") {
  CHECK_THROWS_TEXT(make_program_judge({.command = {"/no/such/judge"}}), ConfigError,
                    "judge '/no/such/judge': expected a program that starts, got No such file or "
                    "directory");
  CHECK_THROWS_TEXT(make_program_judge({.command = {}, .name = "none"}), ConfigError,
                    "judge 'none': expected a program, got none");
  CHECK_THROWS_TEXT(make_program_judge(script("exit 0", 0)), ConfigError,
                    "judge 'script': expected a timeout above 0 and up to 86400 s, got 0");
  const auto judge = make_reward_judge([](const std::string&, const std::string&) { return 0.0; });
  CHECK_THROWS_TEXT(judge_contests(*judge, {}), DataError,
                    "judge_contests: expected a contest, got none");
}

}  // namespace
}  // namespace prefopt
