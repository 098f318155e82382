// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

TEST_CASE("prefopt generate: text, lines, and the same again", "[cli]") {
  const auto generate = [](const std::string& seed) {
    return json_lines(
        run_cli({"generate", "--model", kPolicy, "--tokenizer", "byte", "--prompt", "ab",
                 "--samples", "2", "--max-new-tokens", "5", "--seed", seed, "--json"})
            .out);
  };
  const auto lines = generate("1");
  REQUIRE(lines.size() == 2);
  CHECK(lines[0].at("prompt") == "ab");
  CHECK(lines[0].at("ids").size() <= 5);
  CHECK(lines[0].at("ids") != lines[1].at("ids"));
  CHECK(generate("1") == lines);
  CHECK(generate("2") != lines);

  const TempDir folder;
  const std::string file = folder.file("prompts.jsonl");
  write_text(file, R"({"prompt": "ab"})"
                   "\n"
                   R"({"prompt_ids": [256, 97, 98]})"
                   "\n"
                   R"({"prompt": "ab", "chosen": "c", "rejected": "d"})"
                   "\n");
  const auto greedy_of = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {
        "generate",      "--model", kPolicy,  "--tokenizer",      "byte", "--data", file,
        "--temperature", "0",       "--json", "--max-new-tokens", "3"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return json_lines(run_cli(arguments).out);
  };
  const auto greedy = greedy_of({});
  REQUIRE(greedy.size() == 3);
  CHECK(greedy[0] == greedy[1]);
  CHECK(greedy[0] == greedy[2]);

  write_text(file, R"([{"frage": "ab", "question": "cd"}, {"frage": "ab"}])");
  CHECK(greedy_of({"--columns", R"({"prompt": "frage"})", "--unused", "note"}) ==
        std::vector<json>{greedy[0], greedy[0]});
  check_cli_refused({"generate", "--model", kPolicy, "--tokenizer", "byte", "--data", file,
                     "--columns", R"({"prompt": "frage"})"},
                    3,
                    file +
                        ":1: expected every column of a prompt to be read, got 'question', which "
                        "nothing reads; name what it is in data.columns, or leave it out with "
                        "data.unused = 'note'");
  check_cli_refused({"generate", "--model", kPolicy, "--tokenizer", "byte", "--data", file,
                     "--columns", "sharegtp"},
                    2,
                    "--columns: expected the columns of fields or one of orca, alpaca, sharegpt, "
                    "openai, pku, shp, ultrafeedback, completions, got 'sharegtp'; did you mean "
                    "'sharegpt'?");

  write_text(file, "{\"prompt\": \"ab\"}\n{\"prompt_ids\": [97, 512]}\n");
  check_cli_refused({"generate", "--model", kPolicy, "--tokenizer", "byte", "--data", file}, 3,
                    file +
                        ":2: expected token ids from 0 to 511, the model's, got 512; is the "
                        "tokenizer another model's?");

  check_cli_refused({"generate", "--model", kPolicy}, 2,
                    "generate: expected one of --prompt, --message and --data, got none");
  check_cli_refused({"generate", "--model", kPolicy, "--prompt", "a", "--data", file}, 2,
                    "generate: expected one of --prompt, --message and --data, got several");
  check_cli_refused({"generate", "--model", kPolicy, "--prompt", "a", "--temperature", "-1"}, 2,
                    "--temperature: expected temperature >= 0, got -1");
}

TEST_CASE("prefopt generate: stop strings, least length and penalty", "[cli]") {
  const auto generate = [](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {
        "generate", "--model",          kPolicy, "--tokenizer",   "byte", "--prompt", "ab",
        "--json",   "--max-new-tokens", "12",    "--temperature", "0"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return json_lines(run_cli(arguments).out).at(0);
  };
  const auto ids = generate({}).at("ids").get<std::vector<int>>();
  REQUIRE(ids.size() == 12);
  // The first byte of the text that is a character by itself stops it.
  std::size_t place = 0;
  while (place < ids.size() && ids[place] >= 128) ++place;
  REQUIRE(place < ids.size());
  const std::string text(1, static_cast<char>(ids[place]));
  const auto stopped = generate({"--stop", "no such text", "--stop", text});
  CHECK(stopped.at("ids").size() == place + 1);
  CHECK(stopped.at("completion").get<std::string>().ends_with(text));
  // Its first token as the end token: held back as long as is asked.
  const std::string end = std::to_string(ids[0]);
  CHECK(generate({"--end-tokens", end}).at("ids").size() == 1);
  CHECK(generate({"--end-tokens", end, "--min-new-tokens", "4"}).at("ids").size() >= 4);
  CHECK(generate({"--repetition-penalty", "1.01"}) != generate({"--repetition-penalty", "1e6"}));
  check_cli_refused(
      {"generate", "--model", kPolicy, "--tokenizer", "byte", "--prompt", "a", "--min-new-tokens",
       "65"},
      2, "--min-new-tokens: expected min_new_tokens of at most max_new_tokens, 64, got 65");
  check_cli_refused(
      {"generate", "--model", kPolicy, "--tokenizer", "byte", "--prompt", "a", "--stop", ""}, 2,
      "sampling: expected texts in stop, got an empty one");
}

TEST_CASE("prefopt generate: drafts change no completion", "[cli]") {
  const auto generate = [](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {
        "generate", "--model", kPolicy,  "--tokenizer",      "byte", "--prompt",      "abcabcab",
        "--prompt", "xyxyxyx", "--json", "--max-new-tokens", "30",   "--temperature", "0"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return json_lines(run_cli(arguments).out);
  };
  const auto plain = generate({});
  REQUIRE(plain.size() == 2);
  CHECK(generate({"--draft-tokens", "6"}) == plain);
  const auto check_refused = [](const std::vector<std::string>& more, const std::string& error) {
    std::vector<std::string> arguments = {"generate", "--model",  kPolicy, "--tokenizer",
                                          "byte",     "--prompt", "ab"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    check_cli_refused(arguments, 2, error);
  };
  check_refused({"--draft-tokens", "-1"}, "--draft-tokens: expected at least 0, got -1");
  check_refused({"--draft-tokens", "4", "--candidates"},
                "--draft-tokens: expected plain completions of one model, got --candidates");
  check_refused({"--draft-tokens", "4"},
                "--draft-tokens: expected greedy decoding (temperature 0), got temperature 1");
}

}  // namespace
}  // namespace prefopt::testing_support
