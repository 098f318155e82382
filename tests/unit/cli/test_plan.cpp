// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <string>
#include <vector>

#include "prefopt/options.h"
#include "run/plan/assumptions.h"
#include "support/catch.h"
#include "support/cli.h"
#include "support/files.h"
#include "support/tiny_llama.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

const std::vector<std::string> kPlanOfPairs = {"plan",   "--model", kPolicy, "--tokenizer", "byte",
                                               "--data", kPairs,    "--set", "batch.rows=2"};

std::vector<std::string> with(std::vector<std::string> arguments,
                              const std::vector<std::string>& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

}  // namespace

TEST_CASE("prefopt plan: a model and rows, as JSON", "[cli]") {
  const json plan = cli_json(with(kPlanOfPairs, {"--json", "--memory-gib", "4"}));
  const json& parts = plan["memory"]["parts"];
  CHECK(plan["parameters"] == plan["trained_parameters"]);
  CHECK(parts["weights"] == 4 * plan["parameters"].get<std::int64_t>());
  CHECK(parts["reference"] == parts["weights"]);
  CHECK(parts["gradients"] == parts["weights"]);
  CHECK(plan["memory"]["limit"] == std::int64_t{4} << 30);
  CHECK(plan["memory"]["fits"] == true);
  CHECK(plan["step"]["pairs"] == 2);
  CHECK(plan["step"]["unique_tokens"] < plan["step"]["total_tokens"]);
  CHECK(plan["planned_steps"] == plan["steps"]);
  CHECK(plan["computed"] == true);
  CHECK(plan["mfu"].is_null());
  CHECK(plan["collectives"].empty());

  CHECK(plan["tokenizer"] == "byte");
  // Half a model would not fit into what the program takes itself.
  const json full = cli_json(with(kPlanOfPairs, {"--json", "--memory-gib", "0.14"}));
  CHECK(full["memory"]["fits"] == false);
}

TEST_CASE("prefopt plan: a published model on many GPUs, by lengths", "[cli]") {
  const json plan = cli_json({"plan", "--model", "qwen2.5-7b", "--gpus", "64", "--sharding",
                              "weights", "--lengths", "400,300,300", "--set", "batch.rows=1024",
                              "--set", "model.dtype=bfloat16", "--plan-steps", "1", "--json"});
  CHECK(plan["parameters"] == 7615616512);
  CHECK(plan["tokenizer"].is_null());
  CHECK(plan["assumptions"]["ranks"] == 64);
  CHECK(plan["step"]["total_tokens"] == 1024 * (2 * 700 - 2));
  CHECK(plan["step"]["unique_tokens"] == 1024 * (1000 - 2));
  CHECK(plan["step"]["scored_tokens"] == 1024 * 600);
  CHECK(plan["dealing"]["longest first"]["mean"].get<double>() == Approx(1));
  CHECK(plan["mfu"] > 0.2);
  CHECK(plan["mfu"] < 0.42);
  CHECK(plan["collectives"].size() == 5);
}

TEST_CASE("prefopt plan: every assumption is printed as the flag that changes it", "[cli]") {
  const CliResult result = run_cli(with(kPlanOfPairs, {"--ranks", "2", "--alpha-us", "7"}));
  INFO(result.err);
  REQUIRE(result.code == 0);
  for (const FieldDoc& field : describe_options<detail::PlanAssumptions>()) {
    std::string flag = "--" + field.name;
    for (char& c : flag) c = c == '_' ? '-' : c;
    CAPTURE(flag);
    CHECK(result.out.find("\n  " + flag + " ") != std::string::npos);
    CHECK(result.out.find(field.doc) != std::string::npos);
  }
  for (const std::string part :
       {"memory of a rank: ", "tokens: as the tokenizer 'byte' counts them", "  masters",
        "unique tokens", "longest first  ", "sum of gradients", "time of a step: ", "  bottleneck",
        "computed from assumed speeds"}) {
    CAPTURE(part);
    CHECK((result.out.find(part) != std::string::npos) == (part != "  masters"));
  }
}

TEST_CASE("prefopt plan: a config says what is planned, and calibration how fast", "[cli]") {
  const TempDir folder;
  put(folder.file("run.json"), json{{"model", {{"path", kPolicy}, {"tokenizer", "byte"}}},
                                    {"data", {{"train", kPairs}}},
                                    {"batch", {{"rows", 2}, {"steps", 3}}}}
                                   .dump());
  const CliResult result =
      run_cli({"plan", "--config", folder.file("run.json"), "--set", "model.use_lora=true",
               "--calibrate", "--head-tflops", "7", "--json"});
  if (result.code == 2) {  // next to other programs
    CHECK(result.err.find("that take the same time, got a spread of ") != std::string::npos);
    return;
  }
  REQUIRE(result.code == 0);
  const json plan = json::parse(result.out);
  CHECK(plan["steps"] == 3);
  CHECK(plan["trained_parameters"] < plan["parameters"]);
  CHECK(plan["memory"]["parts"]["reference"] == 0);
  CHECK(plan["computed"] == false);
  CHECK(plan["spread"] >= 0);
  CHECK(plan["spread"] <= 0.25);
  CHECK(plan["assumptions"]["head_tflops"] == 7);
  CHECK(plan["assumptions"]["layers_tflops"] != 0.05);
}

TEST_CASE("prefopt plan: what cannot be planned", "[cli]") {
  check_cli_refused({"plan", "--model", kPolicy}, 2,
                    "--data: expected rows in it, in data.train or in --lengths, got none");
  check_cli_refused({"plan", "--model", "qwen2.5-7", "--data", kPairs}, 2,
                    "--model: expected a folder, a GGUF file, JSON of model.decoder or one of "
                    "smollm2-135m, qwen2.5-1.5b, qwen2.5-7b, llama-3.1-8b, llama-3.1-70b, got "
                    "'qwen2.5-7'; did you mean 'qwen2.5-7b'?");
  check_cli_refused({"plan", "--model", R"({"hidden_size": 3})", "--data", kPairs}, 2,
                    "--model: expected hidden_size to be a multiple of num_attention_heads, got 3 "
                    "and 8");
  check_cli_refused({"plan", "--model", R"({"hidden": 3})", "--data", kPairs}, 2,
                    "--model: expected a known option, got 'hidden'; did you mean 'hidden_size'?");
  check_cli_refused(with(kPlanOfPairs, {"--set", R"(loss={"type": "reward_bt"})"}), 2,
                    "loss: expected one that scores the completions of its rows, which a plan "
                    "counts, got 'reward_bt', which trains a reward model");
  check_cli_refused(
      with(kPlanOfPairs, {"--lengths", "1,2,3"}), 2,
      fmt::format("--lengths: expected no rows of --data or data.train, got '{}'", kPairs));
  check_cli_refused({"plan", "--model", "qwen2.5-7b", "--lengths", "4,0,3"}, 2,
                    "--lengths: expected 1 token or more of each part, got 0");
  check_cli_refused({"plan", "--model", "qwen2.5-7b", "--lengths", "4,3,3", "--tokenizer", "byte"},
                    2, "--tokenizer: expected rows, whose tokens it counts, got --lengths");
  check_cli_refused(with(kPlanOfPairs, {"--gpus", "2", "--ranks", "2"}), 2,
                    "--ranks: expected one of --ranks and --gpus, got both");
  check_cli_refused(with(kPlanOfPairs, {"--gpus", "0"}), 2, "--gpus: expected 1 or more, got 0");
  check_cli_refused(with(kPlanOfPairs, {"--gpus", "2", "--calibrate"}), 2,
                    "--calibrate: expected a plan for CPUs, which are measured, got --gpus");
  check_cli_refused(with(kPlanOfPairs, {"--overlap", "2"}), 2,
                    "--overlap: expected overlap in [0, 1], got 2");
  check_cli_refused(with(kPlanOfPairs, {"--sharding", "all"}), 2,
                    "--sharding: expected sharding to be one of 'none', 'optimizer', 'gradients', "
                    "'weights', got 'all'");
  check_cli_refused({"plan", "--model", "qwen2.5-7b", "--lengths", "4,3,3", "--set", "batch.rows=2",
                     "--ranks", "3"},
                    2, "batch.rows: expected at least a row for each of 3 ranks, got 2");
}

}  // namespace prefopt::testing_support
