// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/online/environment.h"
#include "prefopt/online/feedback.h"
#include "prefopt/online/guess.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"
#include "support/wait.h"

namespace prefopt {
namespace {

using testing_support::comes_true;
using testing_support::TempDir;

/// A program whose first line to each question is that of the shell's `body`; `$line` is it.
EnvironmentProgram shell(const std::string& body) {
  return {.command = {"/bin/sh", "-c", "while read -r line; do " + body + "; done"},
          .timeout = 600};
}

std::string quoted_shell(const std::string& body) {
  return "environment '/bin/sh -c while read -r line; do " + body + "; done': ";
}

/// Answers starts, ends, and an action as `body` does.
std::string acting(const std::string& body) {
  return R"(case "$line" in *prompt*) echo '{"observation": "o"}';; *end*) echo '{}';; *) )" +
         body + ";; esac";
}

const std::vector<Episode> kThree = {{.prompt = "p", .seed = 7, .index = 0},
                                     {.prompt = "p", .seed = 7, .index = 1},
                                     {.prompt = "q\n\"", .seed = 8, .index = 0}};

TEST_CASE("the game of a number says and pays what it should", "[online]") {
  const GuessOptions options{.low = -3, .high = 3, .cost = 0.25};
  std::set<std::int64_t> numbers;
  for (std::int64_t seed = 0; seed < 100; ++seed) {
    numbers.insert(hidden_number(options, {.prompt = "a", .seed = seed, .index = seed}));
  }
  CHECK(numbers == std::set<std::int64_t>{-3, -2, -1, 0, 1, 2, 3});
  const Episode of{.prompt = "a", .seed = 1};
  const std::int64_t hidden = hidden_number(options, of);
  CHECK(hidden == hidden_number(options, {.prompt = "a", .seed = 1, .index = 5}));
  const auto game = make_guess_factory(options)(of);
  CHECK(game->start() ==
        "\nI have a number from -3 to 3 in mind. Which one is it? Answer with a number alone.\n");
  for (std::int64_t guess = -3; guess <= 3; ++guess) {
    const EnvironmentStep step = game->step("It is " + std::to_string(guess) + ", or 77.");
    CHECK(step.done == (guess == hidden));
    CHECK(step.reward == (guess == hidden ? 1 : -0.25));
    if (guess == hidden) continue;
    CHECK(step.observation == (hidden > guess ? "\nIt is higher.\n" : "\nIt is lower.\n"));
  }
  for (const char* text : {"", "one", "4", "-4", "99999999999999999999", "1234567890"}) {
    CAPTURE(text);
    const EnvironmentStep step = game->step(text);
    CHECK(step.observation == "\nAnswer with a number from -3 to 3 alone.\n");
    CHECK(step.reward == -0.25);
    CHECK_FALSE(step.done);
  }
  CHECK_THROWS_TEXT(make_guess_factory({.low = 4, .high = 3}), ConfigError,
                    "guess: expected high of at least low, 4, got 3");
}

TEST_CASE("environments have names", "[online]") {
  const EnvironmentFactory plain = make_environment_factory(R"("guess")");
  CHECK(plain({})->start().find("from 1 to 20") != std::string::npos);
  const EnvironmentFactory wide = make_environment_factory(R"({"type": "guess", "high": 50})");
  CHECK(wide({})->start().find("from 1 to 50") != std::string::npos);
  CHECK_THROWS_TEXT(make_environment_factory(R"("gess")", "x"), ConfigError,
                    "x: expected a known environment, got 'gess'; did you mean 'guess'?");
  CHECK_THROWS_TEXT(make_environment_factory("3", "x"), ConfigError,
                    "x: expected the name of an environment, or an object with a key 'type' that "
                    "names one, got 3");
  CHECK_THROWS_TEXT(make_environment_factory(R"({"type": "guess", "hgh": 3})"), ConfigError,
                    "guess: expected a known option, got 'hgh'; did you mean 'high'?");
  CHECK_THROWS_TEXT(register_environment({.name = "guess"}), ConfigError,
                    "environment: expected a name that is free, got 'guess'");
  CHECK(registered_environments().at(0).options.size() == 3);
}

TEST_CASE("environments in this process have to make sense", "[online]") {
  class Infinite final : public Environment {
   public:
    std::string start() override { return ""; }
    EnvironmentStep step(const std::string&) override {
      return {.observation = "", .reward = std::numeric_limits<double>::infinity()};
    }
  };
  const auto none = make_environments([](const Episode&) { return nullptr; });
  CHECK_THROWS_TEXT(none->start({{.prompt = "p"}}), ConfigError,
                    "environment: expected one for each episode, got null of the factory");
  const auto infinite =
      make_environments([](const Episode&) { return std::make_unique<Infinite>(); });
  infinite->start({{.prompt = "p"}});
  CHECK_THROWS_TEXT(infinite->step({{.episode = 0, .text = "a"}}), DataError,
                    "environment: expected a finite reward, got inf");
}

TEST_CASE("a program is an environment of many episodes", "[online]") {
  const TempDir dir;
  const std::string log = dir.file("log");
  EnvironmentProgram program = shell(
      "printf '%s\\n' \"$line\" >>" + log + "; " +
      acting(
          R"(printf '%s\n' '{"observation": "x\ny", "reward": 0.5, "done": false, "more": 1}')"));
  const auto environments = make_program_environments(program);
  CHECK(environments->start(kThree) == std::vector<std::string>{"o", "o", "o"});
  const auto steps =
      environments->step({{.episode = 2, .text = "a\"b"}, {.episode = 0, .text = ""}});
  REQUIRE(steps.size() == 2);
  CHECK(steps[0].observation == "x\ny");
  CHECK(steps[0].reward == 0.5);
  CHECK_FALSE(steps[0].done);
  environments->end({0, 1, 2});
  environments->start({kThree[0]});
  std::ifstream file(log);
  std::string text;
  for (std::string line; std::getline(file, line);) text += line + "\n";
  CHECK(text ==
        "{\"episode\":0,\"prompt\":\"p\",\"seed\":7,\"index\":0}\n"
        "{\"episode\":1,\"prompt\":\"p\",\"seed\":7,\"index\":1}\n"
        "{\"episode\":2,\"prompt\":\"q\\n\\\"\",\"seed\":8,\"index\":0}\n"
        "{\"episode\":2,\"action\":\"a\\\"b\"}\n"
        "{\"episode\":0,\"action\":\"\"}\n"
        "{\"episode\":0,\"end\":true}\n"
        "{\"episode\":1,\"end\":true}\n"
        "{\"episode\":2,\"end\":true}\n"
        "{\"episode\":3,\"prompt\":\"p\",\"seed\":7,\"index\":0}\n");
}

TEST_CASE("answers that are none are told with their line", "[online]") {
  const std::string form =
      R"(expected {"observation": text, "reward": number, "done": true or false}, got )";
  const std::string asked = R"(; the question was {"episode":0,"action":"a"})";
  const auto fails = [&](const std::string& body, const std::string& got) {
    CAPTURE(body);
    EnvironmentProgram program = shell(acting(body));
    const auto environments = make_program_environments(program);
    environments->start({kThree[0]});
    CHECK_THROWS_TEXT(environments->step({{.episode = 0, .text = "a"}}), DataError,
                      quoted_shell(acting(body)) + form + got + asked);
    // The next episodes are those of a new process.
    CHECK(environments->start({kThree[1]}) == std::vector<std::string>{"o"});
  };
  const auto says = [](const std::string& line) { return "echo '" + line + "'"; };
  for (const std::string line :
       {"well", "[]", "{}", R"({"observation": 1, "reward": 1, "done": true})",
        R"({"observation": "", "done": true})", R"({"observation": "", "reward": 1})",
        R"({"observation": "", "reward": "1", "done": true})",
        R"({"observation": "", "reward": null, "done": true})",
        R"({"observation": "", "reward": 1, "done": 1})",
        R"({"episode": 1, "observation": "", "reward": 1, "done": true})",
        R"({"observation": "", "reward": 1e999, "done": true})"}) {
    fails(says(line), line);
  }
  fails("exit 3", "its end with exit status 3");
  const std::string good = R"({"observation": "", "reward": 1, "done": true})";
  // One write, so that both lines are there when the first is read.
  fails("printf '%s\\n' '" + good + "' '" + good + "'", "more than one line to a question");
}

TEST_CASE("a second line that comes late is not the next answer", "[online]") {
  const TempDir dir;
  const std::string good = R"({"observation": "", "reward": 1, "done": false})";
  EnvironmentProgram program =
      shell(acting("echo '" + good + "'; until [ -e " + dir.file("go") +
                   " ]; do sleep 0.01; done; echo '" + good + "'; : >" + dir.file("went")));
  const auto environments = make_program_environments(program);
  environments->start({kThree[0]});
  CHECK(environments->step({{.episode = 0, .text = "a"}}).size() == 1);
  std::ofstream(dir.file("go")) << "";
  REQUIRE(comes_true([&] { return std::filesystem::exists(dir.file("went")); }));
  try {
    environments->step({{.episode = 0, .text = "b"}});
    FAIL("expected an error");
  } catch (const DataError& error) {
    CHECK(std::string(error.what())
              .ends_with("got more than one line to a question; the question was "
                         R"({"episode":0,"action":"b"})"));
  }
}

TEST_CASE("a program that is late is refused", "[online]") {
  const std::string body = acting("sleep 600");
  EnvironmentProgram program = shell(body);
  program.timeout = 0.2;
  const auto hasty = make_program_environments(program);
  hasty->start({kThree[0]});
  CHECK_THROWS_TEXT(
      hasty->step({{.episode = 0, .text = "a"}}), DataError,
      quoted_shell(body) +
          R"(expected {"observation": text, "reward": number, "done": true or false}, got none )"
          R"(within 0.2 s; the question was {"episode":0,"action":"a"})");
}

TEST_CASE("a process that ends is started again, with what its episodes were", "[online]") {
  const TempDir dir;
  const std::string mark = dir.file("mark");
  // The count of questions is the observation; it dies once, at the fourth action.
  const auto counting = [&](const std::string& first) {
    return R"(i=$((i + 1)); [ -e )" + mark + R"( ] && [ $i -gt 5 ] && rm )" + mark +
           R"( && exit 1; case "$line" in *prompt*) echo '{"observation": ")" + first +
           R"("}';; *) echo "{\"observation\": \"$i\", \"reward\": 0, \"done\": false}";; esac)";
  };
  const auto play = [&](const std::string& first, std::int64_t retries) {
    EnvironmentProgram program = shell(counting(first));
    program.retries = retries;
    const auto environments = make_program_environments(program);
    std::ofstream(mark) << "x";
    environments->start({kThree[0], kThree[1]});
    std::vector<std::string> seen;
    for (int turn = 0; turn < 3; ++turn) {
      for (const auto& step :
           environments->step({{.episode = 0, .text = "a"}, {.episode = 1, .text = "b"}})) {
        seen.push_back(step.observation);
      }
    }
    return seen;
  };
  CHECK_THROWS_AS(play("o", 0), DataError);
  // A count of all questions follows from more than the episode's own actions, which is noticed:
  // the questions of episode 0 come first now.
  CHECK_THROWS_TEXT(
      play("o", 1), DataError,
      quoted_shell(counting("o")) +
          R"(expected the same answer after a new start, {"observation": "3", "reward": 0, )"
          R"("done": false}, got {"observation": "2", "reward": 0, "done": false}; the question )"
          R"(was {"episode":0,"action":"a"})");

  // One whose answers follow from the question alone continues as if nothing had been.
  const std::string body =
      R"(i=$((i + 1)); [ -e )" + mark + R"( ] && [ $i -gt 4 ] && rm )" + mark + " && exit 1; " +
      acting(R"(set -- $(printf %s "$line" | cksum); )"
             R"(echo "{\"observation\": \"$1\", \"reward\": 0, \"done\": false}")");
  std::vector<std::vector<std::string>> seen;
  for (const bool dies : {false, true}) {
    EnvironmentProgram program = shell(body);
    program.retries = 1;
    program.workers = 2;
    const auto environments = make_program_environments(program);
    if (dies) std::ofstream(mark) << "x";
    environments->start(kThree);
    auto& of = seen.emplace_back();
    for (const std::string text : {"a", "b", "c"}) {
      for (const auto& step : environments->step({{.episode = 0, .text = text},
                                                  {.episode = 1, .text = text},
                                                  {.episode = 2, .text = text}})) {
        of.push_back(step.observation);
      }
    }
    CHECK_FALSE(std::filesystem::exists(mark));
  }
  CHECK(seen[0] == seen[1]);
}

TEST_CASE("programs of environments have options in their ranges", "[online]") {
  const auto fails = [](EnvironmentProgram program, const std::string& text) {
    CHECK_THROWS_TEXT(make_program_environments(program), ConfigError, text);
  };
  fails({.command = {}}, "environment: expected a program, got none");
  fails({.command = {"/no/such/game", "-v"}},
        "environment '/no/such/game -v': expected a program that starts, got No such file or "
        "directory");
  fails({.command = {"cat"}, .workers = 0},
        "environment 'cat': expected workers in [1, 32], got 0");
  fails({.command = {"cat"}, .timeout = 0},
        "environment 'cat': expected a timeout above 0 and up to 86400 s, got 0");
  fails({.command = {"cat"}, .retries = -1},
        "environment 'cat': expected retries of at least 0, got -1");
}

TEST_CASE("the example's program plays the game that is built in", "[online]") {
  if (std::system("python3 -c '' 2>/dev/null") != 0) return;
  const std::filesystem::path tests = std::filesystem::path(PREFOPT_TEST_DATA_DIR).parent_path();
  const auto ours = make_environments(make_guess_factory({.low = -5, .high = 9, .cost = 0.1}));
  const auto theirs = make_program_environments(
      {.command = {"python3", tests.parent_path() / "examples/environments/guess.py", "--low", "-5",
                   "--high", "9"},
       .workers = 2,
       .timeout = 600});
  const std::vector<Episode> episodes = {{.prompt = "ä\n", .seed = 9007199254740991},
                                         {.prompt = "p", .seed = 0},
                                         {.prompt = "p", .seed = 3}};
  CHECK(ours->start(episodes) == theirs->start(episodes));
  std::set<std::int64_t> open = {0, 1, 2};
  for (const std::string text : {"-5", "x", "about 3 or 4", "1234567890", "-4", "-3", "-2", "-1",
                                 "0", "1", "2", "3", "4", "5", "6", "7", "8"}) {
    std::vector<EpisodeAction> actions;
    for (const std::int64_t episode : open) actions.push_back({.episode = episode, .text = text});
    const auto a = ours->step(actions);
    const auto b = theirs->step(actions);
    for (std::size_t i = 0; i < actions.size(); ++i) {
      CAPTURE(text, i);
      CHECK(a[i].observation == b[i].observation);
      CHECK(a[i].reward == b[i].reward);
      CHECK(a[i].done == b[i].done);
      if (a[i].done) open.erase(actions[i].episode);
    }
    if (open.empty()) break;
  }
  const std::vector<std::int64_t> left(open.begin(), open.end());
  theirs->end(left);
  CHECK(left.size() < 3);
}

TEST_CASE("rewards that rollouts have are theirs, whatever their tokens", "[online]") {
  const std::vector<Rollout> rollouts = {
      {.prompt = {1}, .completion = {2, 3}, .ended = true, .rewards = {1.5}},
      {.prompt = {1}, .completion = {2, 3}, .ended = false, .rewards = {-1}},
      {.prompt = {1}, .completion = {4}, .ended = true, .rewards = {2}}};
  const auto preference = make_given_reward(0);
  Rater rater(*preference, rollouts, {.missing_eos_penalty = 10});
  rater.ask_rewards();
  CHECK(rater.reward(0) == 1.5);
  CHECK(rater.reward(1) == -11);
  CHECK(rater.reward(2) == 2);
  CHECK(rater.counts().questions == 3);
  CHECK(rater.is_identical(0, 1));
  CHECK(rater.beats(2, 0) == 1);
  const std::vector<Rollout> bare = {{.prompt = {1}, .completion = {2}, .prompt_text = "p"}};
  Rater none(*preference, bare);
  CHECK_THROWS_TEXT(none.ask_rewards(), DataError,
                    "feedback: expected rollouts with the reward of an environment, got one of 'p' "
                    "without");
}

}  // namespace
}  // namespace prefopt
