// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <string>
#include <vector>

#include "prefopt/decoder/reward_model.h"
#include "support/catch.h"
#include "support/cli.h"
#include "support/reward_models.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

const std::string kRewardRows = kRewardModels + "rows.jsonl";

TEST_CASE("prefopt score: rewards of a reward model", "[cli]") {
  const std::string family = GENERATE("llama", "qwen3");
  const json& golden = reward_goldens()[family];
  for (const std::string batch : {"1", "4", "8"}) {
    const CliResult result = run_cli({"score", "--model", kRewardModels + family, "--data",
                                      kRewardRows, "--dtype", "float64", "--batch", batch});
    REQUIRE(result.code == 0);
    const auto lines = json_lines(result.out);
    REQUIRE(lines.size() == golden["chosen"].size());
    for (std::size_t i = 0; i < lines.size(); ++i) {
      CHECK(lines[i]["chosen_reward"].get<double>() ==
            Approx(golden["chosen"][i].get<double>()).margin(2e-6));
      CHECK(lines[i]["rejected_reward"].get<double>() ==
            Approx(golden["rejected"][i].get<double>()).margin(2e-6));
    }
  }
  check_cli_refused(
      {"score", "--model", kRewardModels + family, "--data", kRewardRows, "--per-token"}, 2,
      "--per-token: expected a model with log-probs, got a reward model, which scores a whole "
      "text");
}

TEST_CASE("prefopt eval: accuracy and calibration of reward models", "[cli]") {
  const json report =
      cli_json({"eval", "--model", kRewardModels + "llama", kRewardModels + "qwen3", "--data",
                kRewardRows, "--loss", R"({"type": "reward_bt"})", "--json"});
  CHECK(report["reference"].is_null());
  CHECK(report["beta"] == 1);
  std::size_t place = 0;
  for (const std::string family : {"llama", "qwen3"}) {
    const json& golden = reward_goldens()[family];
    const json& model = report["models"][place++];
    const auto n = static_cast<double>(golden["chosen"].size());
    double right = 0, log_loss = 0, margin = 0;
    for (std::size_t i = 0; i < golden["chosen"].size(); ++i) {
      const double gap = golden["chosen"][i].get<double>() - golden["rejected"][i].get<double>();
      right += (gap > 0 ? 1 : 0) / n;
      log_loss += std::log1p(std::exp(-gap)) / n;
      margin += gap / n;
    }
    CHECK(model["accuracy"]["mean"].get<double>() == Approx(right));
    CHECK(model["accuracy"]["low"] < model["accuracy"]["mean"]);
    CHECK(model["margin"]["mean"].get<double>() == Approx(margin).epsilon(1e-4));
    CHECK(model["calibration"]["log_loss"].get<double>() == Approx(log_loss).epsilon(1e-4));
    CHECK(model["loss"].get<double>() == Approx(log_loss).epsilon(1e-4));
  }
  const CliResult table =
      run_cli({"eval", "--model", kRewardModels + "llama", "--data", kRewardRows});
  CHECK(table.code == 0);
  CHECK(table.out.starts_with(kRewardRows + ", reward models; 95 % intervals in brackets\n"));

  check_cli_refused({"eval", "--model", kRewardModels + "llama", kPolicy, "--data", kRewardRows}, 2,
                    "--model: expected reward models alone or none, got 1 of 2 models");
  check_cli_refused({"eval", "--model", kPolicy, "--data", kRewardRows}, 2,
                    "--ref: expected a reference to compare language models with, got none");
  check_cli_refused(
      {"eval", "--model", kRewardModels + "llama", "--ref", kPolicy, "--data", kRewardRows}, 2,
      "--ref: expected no such option for reward models, which write nothing and have no "
      "reference, got one");
  for (const std::string option : {"--samples", "--prompts", "--max-new-tokens"}) {
    check_cli_refused(
        {"eval", "--model", kRewardModels + "llama", "--data", kRewardRows, option, "4"}, 2,
        option +
            ": expected no such option for reward models, which write nothing and have no "
            "reference, got one");
  }
}

TEST_CASE("prefopt export: a reward model with its adapter merged", "[cli]") {
  const TempDir folder;
  const std::string adapter = folder.file("adapter"), out = folder.file("out");
  const auto model = RewardModel::load(kPolicy, "float32", ScoreHead::kFreshIfNone);
  model->add_adapter({.r = 2});
  for (auto& [name, value] : model->named_parameters()) {
    if (value.requires_grad()) value.data().normal_();
  }
  model->save(adapter);
  REQUIRE(run_cli({"export", "--model", kPolicy, "--adapter", adapter, "--out", out}).code == 0);
  CHECK(is_reward_model(out));
  const auto exported = RewardModel::load(out);
  CHECK_FALSE(exported->body().adapter());
  // Scored by the exported folder as by model and adapter.
  const auto scores = [&](std::vector<std::string> arguments) {
    for (const std::string argument : {"--data", kRewardRows.c_str(), "--dtype", "float64"}) {
      arguments.push_back(argument);
    }
    const CliResult result = run_cli(arguments);
    INFO(result.err);
    REQUIRE(result.code == 0);
    return json_lines(result.out);
  };
  const auto before = scores({"score", "--model", kPolicy, "--adapter", adapter});
  const auto after = scores({"score", "--model", out});
  REQUIRE(after.size() == before.size());
  for (std::size_t i = 0; i < after.size(); ++i) {
    for (const char* side : {"chosen_reward", "rejected_reward"}) {
      CHECK(after[i][side].get<double>() ==
            Approx(before[i][side].get<double>()).epsilon(1e-5).margin(1e-5));
    }
  }
}

}  // namespace
}  // namespace prefopt::testing_support
