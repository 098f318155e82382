// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/online/rollout_file.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace prefopt {
namespace {

using testing_support::read_text;

TEST_CASE("rollouts are read as they were saved", "[online]") {
  const testing_support::TempDir dir;
  const std::string path = dir.file("rollouts.jsonl");
  const Rollout whole{.prompt = {1, 2},
                      .completion = {3, 4, 5},
                      .token_logps = {-0.1, 0, -1e-300},
                      .ended = true,
                      .rewards = {1.0 / 3, std::nan("")},
                      .group = 7,
                      .acted = {1, 0, 1},
                      .turn_ends = {1, 3},
                      .token_rewards = {0.25, 0, -0.5},
                      .source = 2,
                      .prompt_text = "p \"q\"\n",
                      .text = "ä"};
  const Rollout bare{.prompt = {0}, .completion = {9}};
  save_rollouts({whole, bare}, path);
  CHECK(read_text(path) ==
        R"({"prompt":"p \"q\"\n","text":"ä","prompt_ids":[1,2],"completion_ids":[3,4,5],)"
        R"("token_logps":[-0.1,0.0,-1e-300],"token_rewards":[0.25,0.0,-0.5],"acted":[1,0,1],)"
        R"("turn_ends":[1,3],"rewards":[0.3333333333333333,null],"ended":true,"group":7,)"
        R"("source":2})"
        "\n"
        R"({"prompt":"","text":"","prompt_ids":[0],"completion_ids":[9],"ended":false,"group":0,)"
        R"("source":0})"
        "\n");
  const auto again = load_rollouts(path);
  REQUIRE(again.size() == 2);
  CHECK(again[0].prompt == whole.prompt);
  CHECK(again[0].completion == whole.completion);
  CHECK(again[0].token_logps == whole.token_logps);
  CHECK(again[0].ended);
  REQUIRE(again[0].rewards.size() == 2);
  CHECK(again[0].rewards[0] == whole.rewards[0]);
  CHECK(std::isnan(again[0].rewards[1]));
  CHECK(again[0].group == 7);
  CHECK(again[0].acted == whole.acted);
  CHECK(again[0].turn_ends == whole.turn_ends);
  CHECK(again[0].token_rewards == whole.token_rewards);
  CHECK(again[0].source == 2);
  CHECK(again[0].prompt_text == whole.prompt_text);
  CHECK(again[0].text == whole.text);
  CHECK(again[1].prompt == bare.prompt);
  CHECK(again[1].rewards.empty());
  CHECK(again[1].acted.empty());
}

TEST_CASE("files of rollouts that are none are refused", "[online]") {
  const testing_support::TempDir dir;
  const std::string path = dir.file("bad.jsonl");
  const auto fails = [&](const std::string& line, const std::string& text) {
    CAPTURE(line);
    std::ofstream(path) << R"({"prompt_ids": [1], "completion_ids": [2, 3]})" << '\n' << line;
    CHECK_THROWS_TEXT(load_rollouts(path), DataError, path + ":2: " + text);
  };
  fails("well",
        "expected JSON, got something else: parse error at line 1, column 1: syntax error while "
        "parsing value - invalid literal; last read: 'w'");
  fails("[]", "expected an object, got []");
  fails(R"({"prompt_ids": [1], "completion_id": [2]})",
        "expected keys of a rollout, got 'completion_id'; did you mean 'completion_ids'?");
  fails(R"({"completion_ids": [2]})", "expected at least one token in prompt_ids, got none");
  fails(R"({"prompt_ids": [1], "completion_ids": []})",
        "expected at least one token in completion_ids, got none");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("prompt": 1)", "expected prompt to be a text, got 1"},
      {R"("text": [])", "expected text to be a text, got []"},
      {R"("token_logps": [0])", "expected token_logps of the 2 tokens of completion_ids, got 1"},
      {R"("token_logps": {"a": 1})", R"(expected a list in token_logps, got {"a":1})"},
      {R"("token_rewards": [0, null])", "expected numbers in token_rewards, got null"},
      {R"("acted": [0, 2])", "expected 0 or 1 in acted, got 2"},
      {R"("acted": [0, 1, 1])", "expected acted of the 2 tokens of completion_ids, got 3"},
      {R"("turn_ends": [1])", "expected turn_ends to end at 2, the last token, got 1"},
      {R"("turn_ends": [2, 2])", "expected ascending places of up to 2 in turn_ends, got 2"},
      {R"("turn_ends": [3])", "expected ascending places of up to 2 in turn_ends, got 3"},
      {R"("rewards": ["1"])", R"(expected numbers or null in rewards, got "1")"},
      {R"("ended": 1)", "expected ended to be true or false, got 1"},
      {R"("group": -1)", "expected group to be an integer of at least 0, got -1"},
      {R"("source": 0.5)", "expected source to be an integer of at least 0, got 0.5"},
      {R"("group": 18446744073709551615)",
       "expected group to be an integer of at least 0, got 18446744073709551615"},
  };
  for (const auto& [key, text] : cases) {
    fails(R"({"prompt_ids": [1], "completion_ids": [2, 3], )" + key + "}", text);
  }
  fails(R"({"prompt_ids": [-1], "completion_ids": [2]})",
        "expected token ids in prompt_ids, got -1");
  std::ofstream(path) << "\n";
  CHECK_THROWS_TEXT(load_rollouts(path), DataError,
                    path + ": expected at least one rollout, got none");
  const std::string none = dir.file("none");
  CHECK_THROWS_TEXT(load_rollouts(none), DataError,
                    none + ": expected a readable file, got No such file or directory");
}

}  // namespace
}  // namespace prefopt
