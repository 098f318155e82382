// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/subprocess.h"
#include "prefopt/error.h"
#include "prefopt/online/feedback.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"
#include "support/text_files.h"
#include "support/wait.h"

namespace prefopt {
namespace {

using testing_support::kLongWait;
using testing_support::read_text;
using testing_support::TempDir;

/// A shell script; `$line` is a question.
Command script(const std::string& body) { return {"/bin/sh", "-c", body}; }

Command answering(const std::string& body) {
  return script("while read -r line; do " + body + "; done");
}

Command saying(const std::string& answer) { return answering("echo '" + answer + "'"); }

/// The reward is the number in the completion "n…".
Command numbers() { return answering(R"(n=${line##*:\"n}; echo "{\"reward\": ${n%%\"*}}")"); }

std::vector<Rollout> rollouts_of_texts(const std::vector<std::string>& texts) {
  std::vector<Rollout> rollouts;
  for (const std::string& text : texts) {
    rollouts.push_back({.prompt = {1},
                        .completion = {text.begin(), text.end()},
                        .ended = true,
                        .prompt_text = "p",
                        .text = text});
  }
  return rollouts;
}

std::vector<Rollout> numbered(int count) {
  std::vector<std::string> texts;
  for (int i = 0; i < count; ++i) texts.push_back("n" + std::to_string(i));
  return rollouts_of_texts(texts);
}

std::vector<double> rate(Preference& preference, const std::vector<Rollout>& rollouts) {
  std::vector<const Rollout*> asked;
  for (const Rollout& rollout : rollouts) asked.push_back(&rollout);
  return preference.rewards(asked);
}

std::vector<double> first_numbers(int count) {
  std::vector<double> values;
  for (int i = 0; i < count; ++i) values.push_back(i);
  return values;
}

FeedbackOptions parse(const std::string& json) {
  return options_from_json<FeedbackOptions>(json, "feedback");
}

TEST_CASE("options of feedback are read as they are written", "[online]") {
  const FeedbackOptions one = parse(R"({"reward": ["python3", "r.py"], "workers": 3})");
  CHECK(one.reward == std::vector<Command>{{"python3", "r.py"}});
  const FeedbackOptions two = parse(
      R"({"reward_funcs": [["a", "x"], ["b"]], "reward_weights": [1, -0.5], "temperature": 0})");
  CHECK(two.reward == std::vector<Command>{{"a", "x"}, {"b"}});
  CHECK(two.reward_weights == std::vector<double>{1, -0.5});
  const FeedbackOptions models =
      parse(R"({"reward_model": ["rm1", "rm2"], "ensemble": "mean_minus_std", "ensemble_k": 0.5})");
  CHECK(models.reward_model == std::vector<std::string>{"rm1", "rm2"});
  CHECK(parse(R"({"reward_model": "rm"})").reward_model == std::vector<std::string>{"rm"});
  for (const FeedbackOptions& options : {one, two, models, FeedbackOptions{}}) {
    const std::string text = options_to_json(options);
    CHECK(options_to_json(parse(text)) == text);
  }
  CHECK_THROWS_TEXT(
      parse(R"({"reward": "python3 r.py"})"), ConfigError,
      R"(feedback: expected reward to be a program and its arguments, ["python3", "reward.py"], or )"
      R"(a list of such, got "python3 r.py")");
  CHECK_THROWS_TEXT(parse(R"({"reward_model": [1]})"), ConfigError,
                    "feedback: expected reward_model to be a folder or a list of folders, got [1]");
  CHECK_THROWS_TEXT(parse(R"({"reward_weights": ["1"]})"), ConfigError,
                    R"(feedback: expected reward_weights to be a list of numbers, got ["1"])");
}

TEST_CASE("feedback has one source, and no option without use", "[online]") {
  const std::string one_of =
      "feedback: expected one of reward, judge, program, reward_model, implicit_reward and "
      "environment, ";
  const auto fails = [](const std::string& json, const std::string& text) {
    CAPTURE(json);
    CHECK_THROWS_TEXT(make_feedback(parse(json)), ConfigError, text);
  };
  fails("{}", one_of + "got none");
  fails(R"({"reward": ["r"], "judge": ["j"]})", one_of + "got reward and judge");
  const auto useless = [&](const std::string& json, const std::string& name,
                           const std::string& source) {
    fails(json, "feedback: expected no " + name + " with this " + source +
                    ", got one; it would do nothing");
  };
  const auto unused = [&](const std::string& source, const std::string& value,
                          const std::vector<std::pair<std::string, std::string>>& options) {
    for (const auto& [name, set] : options) {
      useless("{\"" + source + "\": " + value + ", \"" + name + "\": " + set + "}", name, source);
    }
  };
  unused("reward", R"(["r"])",
         {{"both_orders", "false"},
          {"ensemble", "\"min\""},
          {"ensemble_k", "2"},
          {"against_baseline", "true"},
          {"unfinished", "\"loses\""}});
  unused("judge", R"(["j"])",
         {{"reward_weights", "[1]"},
          {"temperature", "2"},
          {"missing_eos_penalty", "1"},
          {"length_penalty", "1"}});
  unused("program", R"(["j"])", {{"both_orders", "false"}});
  unused("reward_model", R"("m")",
         {{"ensemble", "\"min\""},
          {"workers", "2"},
          {"timeout", "1"},
          {"retries", "0"},
          {"max_failures", "1"}});
  unused("environment", "true",
         {{"both_orders", "false"},
          {"ensemble", "\"min\""},
          {"workers", "2"},
          {"timeout", "1"},
          {"retries", "0"},
          {"max_failures", "1"},
          {"unfinished", "\"loses\""}});
  useless(R"({"reward_model": ["m", "n"], "ensemble": "min", "ensemble_k": 2})", "ensemble_k",
          "reward_model");
  fails(R"({"reward": ["r"], "reward_weights": [1, 2]})",
        "reward program 'r': expected a program that starts, got No such file or directory");
  fails(R"({"judge": ["/no/such/judge", "-v"]})",
        "judge '/no/such/judge -v': expected a program that starts, got No such file or directory");
  fails(R"({"reward_model": "m"})",
        "feedback: expected a source that is a program, got reward_model; no reward models can be "
        "loaded here");
  fails(R"({"judge": ["j"], "against_baseline": true})",
        "feedback: expected no against_baseline, got one; there are no baselines here");
  FeedbackOptions negative = parse(R"({"reward": ["r"]})");
  negative.workers = 0;
  CHECK_THROWS_TEXT(make_feedback(negative), ConfigError,
                    "feedback: expected workers in [1, 32], got 0");
}

TEST_CASE("the penalties of feedback are those of raters", "[online]") {
  const RaterOptions options = rater_options(
      {.missing_eos_penalty = 2, .length_penalty = 0.5, .unfinished = Unfinished::kLoses});
  CHECK(options.missing_eos_penalty == 2);
  CHECK(options.length_penalty == 0.5);
  CHECK(options.unfinished == Unfinished::kLoses);
}

TEST_CASE("programs give a weighted sum of rewards", "[online]") {
  const auto rollouts = rollouts_of_texts({"n1", "n2.5", "n-3"});
  FeedbackOptions options{.reward = {numbers(), saying(R"({"reward": 10})")},
                          .reward_weights = {2, -0.5},
                          .temperature = 2};
  const auto both = make_feedback(options);
  CHECK(both->has_rewards());
  CHECK(both->temperature() == 2);
  CHECK(rate(*both, rollouts) == std::vector<double>{2 - 5, 5 - 5, -6 - 5});
  options.reward_weights = {1};
  CHECK_THROWS_TEXT(make_feedback(options), ConfigError,
                    "feedback: expected 2 reward_weights, one a reward, got 1");
  options.reward_weights.clear();
  CHECK(rate(*make_feedback(options), rollouts) == std::vector<double>{11, 12.5, 7});
}

TEST_CASE("several workers give the answers of one, in the order of the questions", "[online]") {
  for (const std::int64_t workers : {1, 2, 5}) {
    CAPTURE(workers);
    const auto preference = make_feedback({.reward = {numbers()}, .workers = workers});
    CHECK(rate(*preference, numbered(150)) == first_numbers(150));
    CHECK(rate(*preference, numbered(2)) == first_numbers(2));
    CHECK(rate(*preference, {}).empty());
  }
}

TEST_CASE("workers answer at the same time", "[online]") {
  // Each of two waits until the other one has its question too.
  const TempDir dir;
  const std::string wait = "touch " + dir.file("$$") + "; while [ $(ls " + dir.path() +
                           " | wc -l) -lt 2 ]; do sleep 0.01; done; echo '{\"reward\": 1}'";
  const auto preference =
      make_feedback({.reward = {answering(wait)}, .workers = 2, .timeout = 600});
  CHECK(rate(*preference, numbered(2)) == std::vector<double>{1, 1});
}

TEST_CASE("questions are sent ahead of their answers", "[online]") {
  if (std::system("python3 -c '' 2>/dev/null") != 0) return;
  // Gives back how many questions were there at once.
  const auto preference = make_feedback({.reward = {{"python3", "-c", R"(
import os
while True:
    data = os.read(0, 1 << 20)
    if not data:
        break
    lines = data.count(b"\n")
    os.write(1, b'{"reward": %d}\n' % lines * lines)
)"}}});
  const std::vector<double> seen = rate(*preference, numbered(400));
  CHECK(seen.front() == 1);
  CHECK(*std::max_element(seen.begin(), seen.end()) >= 32);
  CHECK(*std::max_element(seen.begin(), seen.end()) <= 64);
}

TEST_CASE("a judge is asked in both orders, a program in one", "[online]") {
  const auto rollouts = rollouts_of_texts({"good", "bad"});
  const std::vector<Comparison> pair = {{&rollouts[0], &rollouts[1]}, {&rollouts[1], &rollouts[0]}};
  const auto verdicts = [&](const std::string& good_first, const std::string& good_second) {
    const Command command = answering("case \"$line\" in *'\"a\":\"good'*) echo '" + good_first +
                                      "';; *) echo '" + good_second + "';; esac");
    const auto judge = make_feedback({.judge = command});
    CHECK_FALSE(judge->has_rewards());
    const std::vector<double> both = judge->beats(pair);
    CHECK(both[0] + both[1] == 1);
    const auto program = make_feedback({.program = command});
    const std::vector<double> one = program->beats(pair);
    const auto hasty = make_feedback({.judge = command, .both_orders = false});
    CHECK(hasty->beats(pair) == one);
    CHECK(program->inconsistent() == 0);
    return std::vector<double>{both[0], static_cast<double>(judge->inconsistent()), one[0], one[1]};
  };
  const std::string a = R"({"winner": "a"})";
  const std::string b = R"({"winner": "b"})";
  const std::string tie = R"({"winner": "tie"})";
  CHECK(verdicts(a, b) == std::vector<double>{1, 0, 1, 0});
  CHECK(verdicts(a, tie) == std::vector<double>{0.75, 0, 1, 0.5});
  CHECK(verdicts(tie, tie) == std::vector<double>{0.5, 0, 0.5, 0.5});
  CHECK(verdicts(a, a) == std::vector<double>{0.5, 2, 1, 1});  // likes a place
  CHECK(verdicts(b, b) == std::vector<double>{0.5, 2, 0, 0});
  CHECK(verdicts(b, tie) == std::vector<double>{0.25, 0, 0, 0.5});
  CHECK(verdicts(b, a) == std::vector<double>{0, 0, 0, 1});
  CHECK(verdicts(R"({"p": 0.75})", R"({"p": 0.5})") == std::vector<double>{0.625, 0, 0.75, 0.5});
}

TEST_CASE("a judge and a function are preferences", "[online]") {
  const auto rollouts = rollouts_of_texts({"long", "ab", "ba"});
  const std::vector<Comparison> pairs = {
      {&rollouts[0], &rollouts[1]}, {&rollouts[1], &rollouts[0]}, {&rollouts[1], &rollouts[2]}};
  const Reward length = [](const std::string&, const std::string& text) {
    return static_cast<double>(text.size());
  };
  for (const bool both_orders : {false, true}) {
    const auto judge = make_judge_preference(make_reward_judge(length), both_orders);
    CHECK(judge->beats(pairs) == std::vector<double>{1, 0, 0.5});
  }
  const auto reward = make_reward_preference(length, 0);
  CHECK(rate(*reward, rollouts) == std::vector<double>{4, 2, 2});
  CHECK(reward->beats(pairs) == std::vector<double>{1, 0, 0.5});
}

TEST_CASE("a worker that ends is started again", "[online]") {
  const TempDir dir;
  // Ends in place of the sixth answer of each process, whose questions are sent ahead.
  const std::string body = R"(n=${line##*:\"n}; i=$((i+1)); [ $i -gt 5 ] && exit 3; )"
                           R"(echo "{\"reward\": ${n%%\"*}}")";
  const Command tired =
      script("echo x >>" + dir.file("starts") + "; i=0; while read -r line; do " + body + "; done");
  const auto preference = make_feedback({.reward = {tired}, .retries = 1});
  CHECK(rate(*preference, numbered(23)) == first_numbers(23));
  CHECK(read_text(dir.file("starts")) == "x\nx\nx\nx\nx\n");
  const auto two = make_feedback({.reward = {tired}, .workers = 2, .retries = 1});
  CHECK(rate(*two, numbered(23)) == first_numbers(23));
  // The control.
  const auto strict = make_feedback({.reward = {tired}, .retries = 0});
  CHECK_THROWS_TEXT(rate(*strict, numbered(23)), DataError,
                    "reward program '" + tired[0] + " -c " + tired[2] +
                        "': expected {\"reward\": number}, got its end with exit status 3; failure "
                        "1 where max_failures is 0");
}

TEST_CASE("a question that no worker survives fails alone", "[online]") {
  const Command fragile = answering(
      R"(case "$line" in *n7*) exit 1;; esac; n=${line##*:\"n}; echo "{\"reward\": ${n%%\"*}}")");
  for (const std::int64_t workers : {1, 3}) {
    const auto preference =
        make_feedback({.reward = {fragile}, .workers = workers, .max_failures = 1});
    for (int round = 0; round < 2; ++round) {
      if (round == 1) {  // the budget is that of all calls
        CHECK_THROWS_AS(rate(*preference, numbered(8)), DataError);
        continue;
      }
      const std::vector<double> rewards = rate(*preference, numbered(20));
      for (int i = 0; i < 20; ++i) {
        CHECK((i == 7 ? std::isnan(rewards[i]) : rewards[i] == i));
      }
    }
  }
}

TEST_CASE("a worker that is late is started again", "[online]") {
  const TempDir dir;
  const std::string mark = dir.file("tried");
  /// Runs `body` before the answer to n2.
  const auto slow = [&](const std::string& body) {
    return answering("case \"$line\" in *n2*) " + body +
                     R"(;; esac; n=${line##*:\"n}; echo "{\"reward\": ${n%%\"*}}")");
  };
  const Command always = slow("sleep 100");
  const auto some =
      make_feedback({.reward = {always}, .timeout = 2, .retries = 0, .max_failures = 1});
  const std::vector<double> rewards = rate(*some, numbered(5));
  CHECK(std::isnan(rewards[2]));
  CHECK(rewards[4] == 4);
  const auto none = make_feedback({.reward = {always}, .timeout = 0.3, .retries = 1});
  CHECK_THROWS_TEXT(rate(*none, numbered(5)), DataError,
                    "reward program '/bin/sh -c " + always[2] +
                        "': expected {\"reward\": number}, got none within 0.3 s; failure 1 where "
                        "max_failures is 0");
  const auto once =
      make_feedback({.reward = {slow("[ -e " + mark + " ] || { touch " + mark + "; sleep 100; }")},
                     .timeout = 2,
                     .retries = 1});
  CHECK(rate(*once, numbered(5)) == first_numbers(5));
}

TEST_CASE("a line that is no answer is shown", "[online]") {
  const auto shown = [](const FeedbackOptions& options) -> std::string {
    const auto rollouts = numbered(2);
    try {
      const auto preference = make_feedback(options);
      preference->has_rewards() ? rate(*preference, rollouts)
                                : preference->beats({{&rollouts[0], &rollouts[1]}});
    } catch (const DataError& error) {
      const std::string text = error.what();
      return text.substr(text.find("': ") + 3);
    }
    return "nothing";
  };
  const auto of_reward = [&](const std::string& line) { return shown({.reward = {saying(line)}}); };
  const std::string number = R"(expected {"reward": number}, got )";
  const std::string once = "; failure 1 where max_failures is 0";
  CHECK(of_reward("well, 7") == number + "well, 7" + once);
  CHECK(of_reward(R"({"reward": "high"})") == number + R"({"reward": "high"})" + once);
  CHECK(of_reward(R"({"reward": true})") == number + R"({"reward": true})" + once);
  CHECK(of_reward("[1]") == number + "[1]" + once);
  CHECK(of_reward(R"({"reward": null, "error": "busy"})") ==
        number + R"({"reward": null, "error": "busy"})" + once);
  const auto of_judge = [&](const std::string& line) { return shown({.judge = saying(line)}); };
  const std::string verdict =
      R"(expected {"winner": "a", "b" or "tie"} or {"p": number in [0, 1]}, got )";
  for (const std::string line :
       {R"({"winner": "c"})", R"({"p": 1.01})", R"({"p": "0.5"})", R"({"p": 0.7, "winner": "a"})",
        R"({"reward": 1})", R"({"winner": null})", R"({"p": null})"}) {
    CHECK(of_judge(line) == verdict + line + once);
  }
  CHECK(of_reward(std::string(400, 'x')) == number + std::string(300, 'x') + "…" + once);
  // A program that says something before its first answer is not one line behind.
  CHECK(shown({.reward = {script("echo loading; while read -r line; do echo '{\"reward\": 1}'; "
                                 "done")},
               .max_failures = 1}) == number + "loading; failure 2 where max_failures is 1");
}

TEST_CASE("a bad line is a failure of one question", "[online]") {
  const Command fickle = answering(
      R"(n=${line##*:\"n}; n=${n%%\"*}; case $n in 3) echo oops;; 5) echo '{"reward": null}';; )"
      R"(*) echo "{\"reward\": $n}";; esac)");
  const auto preference = make_feedback({.reward = {fickle}, .max_failures = 2});
  const std::vector<double> rewards = rate(*preference, numbered(12));
  for (int i = 0; i < 12; ++i) {
    CHECK((i == 3 || i == 5 ? std::isnan(rewards[i]) : rewards[i] == i));
  }
  CHECK_THROWS_AS(rate(*make_feedback({.reward = {fickle}, .max_failures = 1}), numbered(12)),
                  DataError);
}

TEST_CASE("a program that gives two lines to a question is not believed", "[online]") {
  const auto preference = make_feedback(
      {.reward = {answering(R"(printf '{"reward": 1}\n{"reward": 2}\n')")}, .max_failures = 100});
  try {
    rate(*preference, numbered(50));
    FAIL("expected an error");
  } catch (const DataError& error) {
    CHECK(std::string(error.what()).ends_with("got more than one line to a question"));
  }
}

TEST_CASE("an ensemble is a mean, the least, or a mean less deviations", "[online]") {
  const auto rollouts = numbered(2);
  const std::vector<std::vector<double>> values = {{1, 5}, {2, 5}, {6, 5}};
  struct Fixed : RewardPreference {
    std::vector<double> values;
    std::vector<double> rewards(const std::vector<const Rollout*>&) override { return values; }
  };
  const auto load = [&](const std::string& folder) {
    auto model = std::make_unique<Fixed>();
    model->values = values.at(std::stoi(folder));
    return model;
  };
  const auto combined = [&](Ensemble ensemble, double k) {
    const auto preference = make_feedback(
        {.reward_model = {"0", "1", "2"}, .ensemble = ensemble, .ensemble_k = k, .temperature = 3},
        {.load_reward_model = load});
    CHECK(preference->temperature() == 3);
    return rate(*preference, rollouts);
  };
  CHECK(combined(Ensemble::kMean, 1) == std::vector<double>{3, 5});
  CHECK(combined(Ensemble::kMin, 1) == std::vector<double>{1, 5});
  // Of 1, 2, 6: (4 + 1 + 9) / 3.
  const std::vector<double> careful = combined(Ensemble::kMeanMinusStd, 0.5);
  CHECK(careful[0] == Approx(3 - 0.5 * std::sqrt(14.0 / 3)));
  CHECK(careful[1] == 5);
  const auto one = make_feedback({.reward_model = {"2"}}, {.load_reward_model = load});
  CHECK(rate(*one, rollouts) == values[2]);

  std::vector<std::unique_ptr<Preference>> parts;
  CHECK_THROWS_TEXT(make_ensemble({}, Ensemble::kMin), ConfigError,
                    "feedback: expected a part of a reward, got none");
  parts.push_back(make_judge_preference(nullptr));
  CHECK_THROWS_TEXT(make_weighted_sum(std::move(parts), {1}), ConfigError,
                    "feedback: expected parts that have rewards, got one of comparisons alone");
}

TEST_CASE("comparisons with a baseline are log-odds rewards", "[online]") {
  // Eq. 7 of 2309.06657, and its limits.
  const auto rollouts = rollouts_of_texts({"likely", "never", "always", "base", "silent"});
  const Command program = answering(
      "case \"$line\" in *'\"b\":\"base'*) ;; *) exit 1;; esac; case \"$line\" in *likely*) echo "
      "'{\"p\": 0.8}';; *never*) echo '{\"p\": 0}';; *always*) echo '{\"p\": 1}';; *) echo "
      "'{\"p\": "
      "null}';; esac");
  const auto preference =
      make_feedback({.program = program, .against_baseline = true, .max_failures = 1},
                    {.baseline = [&](const Rollout&) -> const Rollout& { return rollouts[3]; }});
  CHECK(preference->has_rewards());
  const std::vector<double> rewards = rate(*preference, rollouts);
  CHECK(rewards[0] == Approx(std::log(4.0)));
  CHECK(rewards[1] == Approx(std::log(1e-6 / (1 - 1e-6))));
  CHECK(rewards[2] == Approx(-rewards[1]));
  CHECK(rewards[3] == 0);
  CHECK(std::isnan(rewards[4]));
  // Against each other at temperature 1, the odds are a ratio: 4 / 1.
  CHECK(preference->beats({{&rollouts[0], &rollouts[3]}}).front() == Approx(0.8));
}

TEST_CASE("a judge asks a server", "[online]") {
  if (std::system("python3 -c '' 2>/dev/null") != 0) return;
  const std::filesystem::path tests = std::filesystem::path(PREFOPT_TEST_DATA_DIR).parent_path();
  ::setenv("no_proxy", "127.0.0.1", 1);
  const auto rollouts = rollouts_of_texts({"good", "bad"});
  const auto asked = [&](const std::vector<std::string>& replies) {
    Command stub = {"python3", tests / "judges/stub_server.py"};
    stub.insert(stub.end(), replies.begin(), replies.end());
    detail::LineProcess server(stub);
    const std::string port = server.ask("port", kLongWait);
    const auto judge =
        make_feedback({.judge = {"python3", tests.parent_path() / "examples/judges/openai_judge.py",
                                 "--url", "http://127.0.0.1:" + port + "/v1", "--model", "m",
                                 "--retries", "1", "--pause", "0.01", "--timeout", "60"},
                       .timeout = 600,
                       .max_failures = 2});
    const double p = judge->beats({{&rollouts[0], &rollouts[1]}}).front();
    return std::pair(p, judge->inconsistent());
  };
  CHECK(asked({"good"}) == std::pair(1.0, std::int64_t{0}));
  CHECK(asked({"status:503", "A"}) == std::pair(0.5, std::int64_t{1}));  // likes a place
  CHECK(std::isnan(asked({"perhaps"}).first));
}

}  // namespace
}  // namespace prefopt
