// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/close.h"
#include "support/small_decoder.h"
#include "support/temp_dir.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

const std::string kPair = R"({"prompt": "ab", "chosen": "cd", "rejected": "e"})";

/// A checkpoint of a model of bytes, and a row.
class RowScene {
 public:
  /// `data`: options that the run read its rows with.
  explicit RowScene(json data = json::object(), const std::string& row = kPair) {
    write_text(rows, row + "\n");
    data["train"] = rows;
    const json config = {{"output_dir", folder.file("run")},        {"loss", {{"type", "dpo"}}},
                         {"model", {{"decoder", small_decoder()}}}, {"data", data},
                         {"batch", {{"steps", 1}, {"rows", 1}}},    {"machine", {{"threads", 1}}}};
    write_text(folder.file("run.json"), config.dump());
    const CliResult result = run_cli({"train", "--config", folder.file("run.json"), "--quiet"});
    INFO(result.err);
    REQUIRE(result.code == 0);
  }

  std::string checkpoint() const { return folder.file("run/checkpoints/last"); }

  std::vector<std::string> command(const std::string& name,
                                   const std::vector<std::string>& more = {}) const {
    std::vector<std::string> words{name, "--model", checkpoint(), "--data", rows};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  CliResult run(const std::string& name, const std::vector<std::string>& more = {}) const {
    CliResult result = run_cli(command(name, more));
    INFO(result.err);
    REQUIRE(result.code == 0);
    return result;
  }

  std::string remark(const std::string& options,
                     const std::string& otherwise = "--data-options") const {
    return "prefopt: rows are read as the run of " + checkpoint() + " did: " + options + "; " +
           otherwise + " says otherwise\n";
  }

  TempDir folder;
  std::string rows = folder.file("rows.jsonl");
};

/// Tokens of the chosen completion.
json chosen_length(const CliResult& result) { return json_lines(result.out).at(0)["chosen_len"]; }

TEST_CASE("prefopt: rows are read as the run of the model did, unasked", "[cli]") {
  const RowScene scene({{"add_eos", false}, {"add_bos", false}, {"columns", {{"prompt", "frage"}}}},
                       R"({"frage": "ab", "chosen": "cd", "rejected": "e"})");
  const std::string remark =
      scene.remark(R"(add_bos = false, add_eos = false, columns = {"prompt":"frage"})");
  const CliResult scored = scene.run("score", {"--per-token"});
  CHECK(chosen_length(scored) == 2);  // "cd" without an end token
  CHECK(scored.err == remark);

  const CliResult grad = scene.run("grad", {"--loss", R"({"type": "sft"})"});
  CHECK(grad.err == remark);
  check_close(json::parse(grad.out)["metrics"]["logps/chosen"],
              json::parse(scored.out)["chosen_logps"], 1e-5);
  const CliResult eval = scene.run("eval", {"--ref", scene.checkpoint(), "--samples", "0"});
  CHECK(eval.err.starts_with(remark));
  // generate writes no completions.
  const CliResult generated = scene.run("generate", {"--max-new-tokens", "1", "--json"});
  CHECK(generated.err == scene.remark(R"(add_bos = false, columns = {"prompt":"frage"})"));
  CHECK(json::parse(generated.out)["prompt"] == "ab");
  const CliResult checked =
      run_cli({"data", "check", "--model", scene.checkpoint(), "--data", scene.rows, "--json"});
  CHECK(checked.err == scene.remark(R"(add_bos = false, add_eos = false, columns = )"
                                    R"({"prompt":"frage"})",
                                    "--options"));
  const json shown = json::parse(checked.out)["shown"][0];
  CHECK(shown["prompt"]["ids"] == json({'a', 'b'}));
  CHECK(shown["chosen"]["ids"] == json({'c', 'd'}));

  // The command line goes first, and an export remembers as much.
  const CliResult overridden = scene.run("score", {"--data-options", R"({"add_eos": true})"});
  CHECK(chosen_length(overridden) == 3);
  CHECK(overridden.err == scene.remark(R"(add_bos = false, columns = {"prompt":"frage"})"));
  write_text(scene.rows, kPair);
  const CliResult otherwise =
      scene.run("score", {"--columns", "{}", "--data-options", R"({"add_bos": true})"});
  CHECK(otherwise.err == scene.remark("add_eos = false"));
  const std::string out = scene.folder.file("out");
  REQUIRE(run_cli({"export", "--model", scene.checkpoint(), "--out", out}).code == 0);
  CHECK(read_text(out + "/prefopt.json") == read_text(scene.checkpoint() + "/prefopt.json"));
}

TEST_CASE("prefopt generate: remembered columns of completions may be missing", "[cli]") {
  const RowScene scene(
      json{{"columns", {{"prompt", "frage"}, {"chosen", "gut"}, {"rejected", "schlecht"}}}},
      R"({"frage": "ab", "gut": "cd", "schlecht": "e"})");
  write_text(scene.rows, R"({"frage": "xy"})");
  const CliResult result = scene.run("generate", {"--max-new-tokens", "1", "--json"});
  CHECK(json::parse(result.out)["prompt"] == "xy");
  write_text(scene.rows, R"({"gut": "xy"})");
  CHECK(run_cli(scene.command("generate")).code != 0);
  write_text(scene.rows, R"({"frage": "xy"})");
  check_cli_refused(
      scene.command("score", {"--columns", R"({"prompt": "frage", "chosen": "gut"})"}), 3,
      scene.rows + ":1: expected the column 'gut' of data.columns.chosen, got a row without it");
}

TEST_CASE("prefopt: rows are as by default where nothing is remembered", "[cli]") {
  const RowScene scene;
  CHECK(scene.run("score").err == "");
  CHECK(chosen_length(scene.run("score")) == 3);
  const std::string memory = scene.checkpoint() + "/prefopt.json";
  CHECK(json::parse(read_text(memory))["data"]["loss_on"] == "assistant");
  // As versions before wrote it.
  std::filesystem::remove(memory);
  write_text(memory, R"({"tokenizer": "byte"})");
  CHECK(scene.run("score").err == "");
  CHECK(chosen_length(scene.run("score", {"--data-options", R"({"add_eos": false})"})) == 2);
  std::filesystem::remove(memory);
  write_text(memory, R"({"tokenizer": "byte", "data": {"loss_on": "first"}})");
  check_cli_refused(scene.command("score"), 4,
                    memory +
                        ": data: expected loss_on to be one of 'assistant', 'last', 'all', got "
                        "'first'");
}

TEST_CASE("prefopt: turns that count are those of the run", "[cli]") {
  const RowScene scene(json{{"loss_on", "last"}, {"chat_format", "dialogue"}});
  const std::string prompt = R"("prompt": [{"role": "user", "content": "a"}], )";
  const std::string turns =
      R"([{"role": "assistant", "content": "bc"}, {"role": "user", "content": "d"}, )"
      R"({"role": "assistant", "content": "efg"}])";
  write_text(scene.rows, "{" + prompt + R"("chosen": )" + turns + R"(, "rejected": )" +
                             R"([{"role": "assistant", "content": "x"}]})");
  CHECK(chosen_length(scene.run("score")) == 5);  // " efg" and the end
  // " bc" as well
  CHECK(chosen_length(scene.run("score", {"--data-options", R"({"loss_on": "assistant"})"})) == 8);
}

TEST_CASE("prefopt: rows that give results are whole, unless it is said", "[cli]") {
  const RowScene scene(json{{"max_length", 5}, {"identical", "error"}, {"tool_calls", "keep"}});
  const CliResult whole = scene.run("score");
  CHECK(chosen_length(whole) == 3);
  CHECK(whole.err == scene.remark("tool_calls = 'keep'") +
                         "prefopt: 1 row read whole that the run of " + scene.checkpoint() +
                         " cut (max_prompt_length 512, max_completion_length 0, max_length 5); "
                         "--data-options cuts likewise\n");
  const std::string budget = R"({"max_completion_length": 2, "end_of_cut": "keep"})";
  const CliResult cut = scene.run("score", {"--data-options", budget});
  CHECK(chosen_length(cut) == 2);
  CHECK(cut.err.find("truncated 1 completion (line 1)\n") != std::string::npos);

  write_text(scene.rows, kPair + "\n" + R"({"prompt": "ab", "chosen": ""})" + "\n" + kPair);
  const CliResult dropped =
      scene.run("score", {"--data-options", R"({"unusable": "drop", "max_length": 9})"});
  const std::vector<json> lines = json_lines(dropped.out);
  REQUIRE(lines.size() == 2);
  CHECK(lines[0]["line"] == 1);
  CHECK(lines[1]["line"] == 3);
  CHECK(dropped.err.find("dropped 1 row: expected a key 'rejected' (line 2)\n") !=
        std::string::npos);
  CHECK_FALSE(json_lines(whole.out)[0].contains("line"));

  // data check has all options of the run, or those of another one.
  write_text(scene.rows, kPair);
  const auto truncated = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words{"data",   "check",    "--model", scene.checkpoint(),
                                   "--data", scene.rows, "--json"};
    words.insert(words.end(), more.begin(), more.end());
    return cli_json(words)["train"]["truncated"]["tokens"];
  };
  CHECK(truncated({}) == 1);
  CHECK(truncated({"--options", "{}"}) == 0);
  CHECK(truncated({"--max-length", "4"}) == 2);
}

TEST_CASE("prefopt: options of rows that a command has no use for are refused", "[cli]") {
  const RowScene scene;
  const auto refused = [&](const std::string& command, const std::string& options,
                           const std::string& sentence) {
    check_cli_refused(scene.command(command, {"--data-options", options}), 2,
                      "--data-options: expected " + sentence);
  };
  refused("score", R"({"train": "x"})", "options that say how rows are read, got 'train'");
  refused("generate", R"({"loss_on": "all"})",
          "options that say how prompts are read, got 'loss_on'");
  refused("generate", R"({"truncation_mode": "keep_end"})",
          "options that say how prompts are read, got 'truncation_mode'");
  check_cli_refused(scene.command("score", {"--data-options", R"({"los_on": "all"})"}), 2,
                    "--data-options: expected a known option, got 'los_on'; did you mean "
                    "'loss_on'?");
}

TEST_CASE("prefopt eval: runs that read rows otherwise are not compared unasked", "[cli]") {
  const RowScene scene;
  const std::string other = scene.folder.file("other");
  std::filesystem::copy(std::filesystem::canonical(scene.checkpoint()), other);
  std::filesystem::remove(other + "/prefopt.json");
  write_text(other + "/prefopt.json",
             R"({"tokenizer": "byte", "data": {"add_eos": false, "duplicate": "drop"}})");
  std::vector<std::string> words{"eval", "--model", scene.checkpoint(), other,       "--ref",
                                 other,  "--data",  scene.rows,         "--samples", "0"};
  check_cli_refused(words, 2,
                    "--model: expected models whose runs read rows alike, got add_eos = true for " +
                        scene.checkpoint() + " and add_eos = false for " + other +
                        "; say it with --data-options");
  words.insert(words.end(), {"--data-options", R"({"add_eos": true})"});
  CHECK(run_cli(words).code == 0);
  // The reference's, where no model has some.
  const std::string bare = scene.folder.file("bare");
  std::filesystem::copy(other, bare);
  std::filesystem::remove(bare + "/prefopt.json");
  const CliResult result =
      run_cli({"eval", "--model", bare, "--ref", other, "--data", scene.rows, "--samples", "0"});
  INFO(result.err);
  CHECK(result.code == 0);
  CHECK(result.err.find("the run of " + other + " did: add_eos = false;") != std::string::npos);
}

}  // namespace
}  // namespace prefopt::testing_support
