// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "support/catch.h"
#include "support/cli.h"
#include "support/small_decoder.h"
#include "support/temp_dir.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

/// A byte-level model small enough to train in a test, and rows for it.
class TrainingSetup {
 public:
  TrainingSetup() {
    std::string rows;
    for (int i = 0; i < 12; ++i) {
      const std::string letter(1, static_cast<char>('a' + i));
      rows +=
          json{{"prompt", letter + ">"}, {"chosen", "yes " + letter}, {"rejected", "no"}}.dump();
      rows += "\n";
    }
    write_text(folder.file("rows.jsonl"), rows);
    config = {{"output_dir", folder.file("run")},
              {"loss", {{"type", "dpo"}}},
              {"model", {{"decoder", small_decoder()}}},
              {"data", {{"train", folder.file("rows.jsonl")}, {"eval_fraction", 0.25}}},
              {"batch", {{"steps", 3}, {"rows", 4}}},
              {"machine", {{"threads", 1}}}};
  }

  std::string config_path() const {
    write_text(folder.file("run.json"), config.dump());
    return folder.file("run.json");
  }

  TempDir folder;
  json config;
};

TEST_CASE("prefopt train: a run folder and a summary", "[cli]") {
  const TrainingSetup setup;
  const CliResult result = run_cli({"train", "--config", setup.config_path()});
  INFO(result.err);
  REQUIRE(result.code == 0);
  CHECK(result.out.starts_with("checkpoint: " + setup.folder.file("run") + "/checkpoints/"));
  CHECK(result.out.find("eval_rewards/accuracies: ") != std::string::npos);
  CHECK(result.err.find("evaluation at step 0  loss 0.6931") != std::string::npos);
  CHECK(result.err.find("step 3/3  loss ") != std::string::npos);
  CHECK(result.err.find('\r') == std::string::npos);
  CHECK(result.err.find('\033') == std::string::npos);

  const CliResult again = run_cli({"train", "--config", setup.config_path()});
  CHECK(again.code == 2);

  const std::string checkpoint = setup.folder.file("run/checkpoints/last");
  const CliResult scored =
      run_cli({"score", "--model", checkpoint, "--data", setup.folder.file("rows.jsonl")});
  CHECK(json_lines(scored.out).size() == 12);
}

TEST_CASE("prefopt train: quiet, dry and printed runs", "[cli]") {
  const TrainingSetup setup;
  SECTION("--quiet keeps remarks and leaves progress out") {
    const CliResult result = run_cli({"train", "--config", setup.config_path(), "--quiet"});
    CHECK(result.code == 0);
    CHECK(result.err.find("step ") == std::string::npos);
    CHECK(result.err.find("rows of") != std::string::npos);
  }
  SECTION("--dry-run leaves nothing behind") {
    const CliResult result = run_cli({"train", "--config", setup.config_path(), "--dry-run"});
    INFO(result.err);
    CHECK(result.code == 0);
    CHECK(result.err.find("12 of 12 rows") != std::string::npos);
    for (const std::string fact :
         {"steps: 3 of 4 pairs", "tokens/s", "peak memory: ", "time to finish: about "}) {
      CHECK(result.out.find(fact) != std::string::npos);
    }
    CHECK_FALSE(std::filesystem::exists(setup.folder.file("run")));
  }
  SECTION("--print-config shows every option and what --set made of them") {
    const json config =
        cli_json({"train", "--config", setup.config_path(), "--set", "loss.beta=0.25", "--set",
                  "batch.steps=7", "--set", "data.eval=held out.jsonl", "--print-config"});
    CHECK(config.at("loss").at("type") == "dpo");
    CHECK(config.at("loss").at("beta") == 0.25);
    CHECK(config.at("batch").at("steps") == 7);
    CHECK(config.at("batch").at("rows") == 4);
    CHECK(config.at("data").at("eval") == "held out.jsonl");
    CHECK(config.at("optimizer").contains("learning_rate"));
    CHECK_FALSE(std::filesystem::exists(setup.folder.file("run")));
  }
}

TEST_CASE("prefopt train: former places of options are read and named", "[cli]") {
  TrainingSetup setup;
  setup.config.erase("batch");
  setup.config["train"] = {{"steps", 3}, {"batch_size", 4}, {"eval_every", 2}, {"seed", 5}};
  const CliResult printed =
      run_cli({"train", "--config", setup.config_path(), "--set", "train.steps=7", "--set",
               "checkpoint.every=2", "--set", "train.micro_batch_size=1", "--print-config"});
  REQUIRE(printed.code == 0);
  CHECK(printed.err ==
        "config: train.steps is now batch.steps, train.batch_size is now batch.rows, "
        "train.eval_every is now evaluate.every, train.seed is now seed\n");
  const json config = json::parse(printed.out);
  CHECK_FALSE(config.contains("train"));
  CHECK(config.at("batch").at("steps") == 7);
  CHECK(config.at("batch").at("rows") == 4);
  CHECK(config.at("batch").at("micro_rows") == 1);
  CHECK(config.at("evaluate").at("every") == 2);
  CHECK(config.at("checkpoint").at("every") == 2);
  CHECK(config.at("seed") == 5);
  // All of them, at their former places, make what they make at the present ones.
  const CliResult run = run_cli({"train", "--config", setup.config_path()});
  CHECK(run.code == 0);
  const std::string note = "config: train.steps is now batch.steps";
  CHECK(run.err.find(note) == run.err.rfind(note));
  CHECK(run.err.find(note) != std::string::npos);
}

TEST_CASE("prefopt train: configurations that cannot be meant", "[cli]") {
  TrainingSetup setup;
  const std::string path = setup.config_path();
  const auto refused = [&](const std::string& set, const std::string& sentence) {
    INFO(set);
    check_cli_refused({"train", "--config", path, "--set", set}, 2, sentence);
  };
  refused("train.stpes=3", path +
                               " with --set: config.train: expected a known option, got 'stpes'; "
                               "did you mean 'steps'?");
  refused("batch.steps=many", path +
                                  " with --set: config.batch: expected steps to be a whole "
                                  "number, got \"many\"");
  refused("steps", "--set: expected KEY=VALUE, got 'steps'");
  refused("output_dir.x=1", "--set output_dir.x: expected output_dir to be an object, got \"" +
                                setup.folder.file("run") + "\"");
  refused("loss={\"a\": 1, \"a\": 2}", "--set loss: expected JSON, got the key 'a' twice");

  setup.config["outputdir"] = "x";
  check_cli_refused({"train", "--config", setup.config_path()}, 2,
                    path +
                        ": config: expected a known option, got 'outputdir'; did you mean "
                        "'output_dir'?");
  check_cli_refused({"train", "--config", path + ".none"}, 2,
                    path + ".none: expected a readable file, got No such file or directory");
}

}  // namespace
}  // namespace prefopt::testing_support
