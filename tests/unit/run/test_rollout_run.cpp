// SPDX-License-Identifier: Apache-2.0
// Runs with an objective on tokens: that they learn, resume at each step, and configs that cannot
// be meant.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/run/run.h"
#include "support/catch.h"
#include "support/checkpoint_parts.h"
#include "support/counts.h"
#include "support/errors.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

/// A program like measures_text, but with shares, for rates of success.
Json measures_shares() {
  return {"/bin/sh", "-c",
          "while read -r line; do c=${line#*completion}; "
          "echo \"{\\\"reward\\\": 0.$((100 + ${#c}))}\"; done"};
}

class RolloutScene {
 public:
  RolloutScene() {
    std::ofstream rows(file("rows.jsonl"));
    for (int i = 0; i < 8; ++i) {
      const std::string prompt(1, static_cast<char>('a' + i));
      rows << Json{{"prompt", prompt}, {"completion", " eel"}}.dump() << '\n';
    }
    std::ofstream prompts(file("prompts.jsonl"));
    for (int i = 0; i < 8; ++i) {
      prompts << Json{{"prompt", std::string(1 + i % 3, static_cast<char>('a' + i))}}.dump()
              << '\n';
    }
  }

  std::string file(const std::string& name) const { return folder_.file(name); }

  Json config(const std::string& run) const {
    return {{"output_dir", file(run)},
            {"loss", {{"type", "grpo"}}},
            {"model",
             {{"decoder",
               {{"hidden_size", 16},
                {"intermediate_size", 24},
                {"num_hidden_layers", 1},
                {"num_attention_heads", 2},
                {"num_key_value_heads", 1},
                {"initializer_range", 0.4},
                {"max_position_embeddings", 64}}}}},
            {"online",
             {{"prompts", file("prompts.jsonl")},
              {"sources", {{{"from", "policy"}, {"n", 4}}}},
              {"feedback", {{"reward", measures_text()}}},
              {"rounds", {{"rounds", 3}, {"prompts", 4}, {"steps", 2}}}}},
            {"optimizer", {{"learning_rate", 1e-2}}},
            {"sampling", {{"max_new_tokens", 6}}},
            {"checkpoint", {{"every", 1}, {"keep_last", 0}}},
            {"machine", {{"threads", 1}}},
            {"seed", 1}};
  }

 private:
  TempDir folder_;
};

/// Changes of the config, one for each part with a state.
std::vector<std::pair<std::string, Json>> components() {
  const Json value = {{"optimizer", {{"learning_rate", 5e-3}}}, {"pretrain_steps", 1}};
  return {
      {"grpo", Json::object()},
      {"passes",
       {{"online", {{"rounds", {{"epochs", 2}}}}},
        {"loss", {{"type", "dapo"}, {"unfinished", "keep"}}}}},
      {"temperature", {{"sampling", {{"temperature", 0.8}}}, {"loss", {{"type", "gspo"}}}}},
      {"adaptive-kl", {{"loss", {{"type", "rloo"}, {"kl", {{"target", 0.01}, {"horizon", 50}}}}}}},
      {"running-rewards", {{"online", {{"reward", {{"normalize", true}, {"clip", 0.8}}}}}}},
      {"priorities",
       {{"online",
         {{"rollouts", {{"priorities", true}}}, {"feedback", {{"reward", measures_shares()}}}}}}},
      {"dynamic-sampling",
       {{"online", {{"rollouts", {{"dynamic_sampling", true}, {"most_draws", 3}}}}}}},
      {"values", {{"loss", {{"type", "ppo"}}}, {"value", value}}},
      {"value-head", {{"loss", {{"type", "ppo_max"}}}, {"value", {{"body", "policy"}}}}},
      {"exact-kl",
       {{"loss",
         {{"type", "grpo"}, {"kl", {{"estimator", "exact"}}}, {"entropy_coefficient", 0.01}}}}},
      {"imitation", {{"online", {{"imitate", {{"data", "rows.jsonl"}, {"rows", 3}}}}}}},
      {"mirror-descent",
       {{"loss", {{"type", "kimi"}}}, {"online", {{"rounds", {{"restart_optimizer", true}}}}}}},
  };
}

TEST_CASE("an objective on tokens learns from what the policy writes", "[run]") {
  const RolloutScene scene;
  Json config = scene.config("run");
  config["online"]["rounds"] = {{"rounds", 12}, {"prompts", 8}, {"steps", 2}};
  config["loss"] = {{"type", "dapo"}, {"unfinished", "keep"}};
  const RunResult result = run_config(config);
  CHECK(result.steps == 24);
  std::vector<Json> rounds = read_lines(scene.file("run/rounds.jsonl"));
  REQUIRE(rounds.size() == 12);
  CHECK(rounds.back()["reward"] > rounds.front()["reward"].get<double>() + 1);
  CHECK(rounds.front()["completions/mean_length"] > 1);
  CHECK(rounds.front().contains("reward_std"));
  CHECK_FALSE(rounds.front().contains("pairs/kept"));
  const std::vector<Json> lines = read_lines(scene.file("run/metrics.jsonl"));
  for (const char* name : {"entropy", "clip_ratio/region_mean", "frac_reward_zero_std",
                           "completions/clipped_ratio", "reward"}) {
    CAPTURE(name);
    CHECK(lines.back().contains(name));
  }
}

TEST_CASE("rollouts do not depend on how they are decoded or cut", "[run]") {
  const RolloutScene scene;
  for (const int at_once : {1, 64}) {
    Json config = scene.config("at-once-" + std::to_string(at_once));
    config["online"]["at_once"] = at_once;
    config["online"]["rounds"]["rounds"] = 1;
    run_config(config);
  }
  CHECK(read_lines(scene.file("at-once-1/rounds.jsonl")) ==
        read_lines(scene.file("at-once-64/rounds.jsonl")));
}

TEST_CASE("a run on rollouts that is resumed at any step ends in the same bits", "[run]") {
  const RolloutScene scene;
  std::int64_t resumed = 0;
  for (const auto& [name, change] : components()) {
    CAPTURE(name);
    Json config = scene.config(name);
    config.merge_patch(change);
    if (config["online"].contains("imitate")) {
      config["online"]["imitate"]["data"] = scene.file("rows.jsonl");
    }
    const RunResult straight = run_config(config);
    const Parts expected = parts_of(straight.checkpoint);
    REQUIRE(straight.steps >= 6);
    // In the middle of a round, and where one ends.
    for (const std::int64_t step : {std::int64_t{1}, straight.steps - 2}) {
      CAPTURE(step);
      config["output_dir"] = scene.file(name + "-" + std::to_string(step));
      const RunResult again =
          run_config(config, scene.file(name + "/checkpoints/step-" + std::to_string(step)));
      CHECK(again.steps == straight.steps);
      CHECK(differing(parts_of(again.checkpoint), expected) == std::set<std::string>());
      ++resumed;
    }
  }
  report_count("runs on rollouts resumed", resumed);
}

TEST_CASE("every preset of an objective trains", "[run]") {
  const RolloutScene scene;
  for (const ObjectivePreset& preset : objective_presets()) {
    CAPTURE(preset.name);
    Json config = scene.config(preset.name);
    config["loss"] = {{"type", preset.name}};
    config["online"]["rounds"] = {{"rounds", 2}, {"prompts", 3}};
    const TokenObjective objective = make_token_objective(config["loss"].dump());
    if (objective.needs().extra_logps) continue;  // has a model that DPO trained
    if (objective.needs().greedy_rewards) {
      config["online"]["sources"].push_back(
          {{"from", "policy"}, {"name", "greedy"}, {"temperature", 0}});
    }
    if (preset.name == "dapo") config["loss"]["unfinished"] = "keep";
    const RunResult result = run_config(config);
    CHECK(result.steps == 2);
  }
}

/// The configs of examples/configs/policy_gradient, made small.
TEST_CASE("every policy-gradient config of the examples trains", "[run]") {
  const RolloutScene scene;
  std::int64_t configs = 0;
  for (const auto& entry :
       fs::directory_iterator(PREFOPT_TEST_DATA_DIR "/../../examples/configs/policy_gradient")) {
    const std::string name = entry.path().stem().string();
    CAPTURE(name);
    Json config = Json::parse(read_text(entry.path().string()));
    const Json usual = scene.config(name);
    for (const char* group : {"output_dir", "model", "sampling", "machine"}) {
      config[group] = usual[group];
    }
    Json& online = config["online"];
    bool has_data = false;
    for (Json& source : online["sources"]) {
      has_data = has_data || source["from"] == "data";
      source["n"] = std::min(source["n"].get<int>(), 4);
    }
    online["prompts"] = scene.file(has_data ? "rows.jsonl" : "prompts.jsonl");
    const bool has_rates = online.contains("rollouts") && online["rollouts"].contains("priorities");
    online["feedback"]["reward"] = has_rates ? measures_shares() : measures_text();
    online["rounds"]["rounds"] = 2;
    online["rounds"]["prompts"] = 4;
    if (online.contains("reward") && online["reward"].contains("overlong_buffer")) {
      online["reward"]["overlong_buffer"] = 2;
    }
    if (config["loss"]["type"] == "dapo") config["loss"]["unfinished"] = "keep";
    const RunResult result = run_config(config);
    CHECK(result.steps >= 2);
    const auto rounds = read_lines(scene.file(name + "/rounds.jsonl"));
    REQUIRE_FALSE(rounds.empty());
    CHECK(rounds[0].contains("reward"));
    ++configs;
  }
  CHECK(configs >= 15);
}

TEST_CASE("configs of objectives that cannot be meant are refused", "[run]") {
  const RolloutScene scene;
  const auto refused = [&](const Json& change, const std::string& text) {
    CAPTURE(change.dump());
    Json config = scene.config("refused");
    config.merge_patch(change);
    CHECK_THROWS_TEXT(run_config(config), ConfigError, text);
    CHECK_FALSE(fs::exists(scene.file("refused")));
  };
  refused({{"online", {{"sources", {{{"from", "policy"}}}}}}},
          "online.sources: expected at least 2 completions of each prompt, as 'grpo' compares "
          "them, got 1");
  refused(
      {{"sampling", {{"top_p", 0.9}}}},
      "online.sources: expected 'policy' to draw from the whole distribution (top_k 0, top_p 1, "
      "no min_new_tokens, no repetition_penalty), as the ratios of 'grpo' are of that, got "
      "another one");
  refused({{"loss", {{"type", "remax"}}}},
          "online.sources: expected a source {\"from\": \"policy\", \"name\": \"greedy\", "
          "\"temperature\": 0} for 'remax', got none");
  refused({{"online", {{"sources", {{{"from", "reference"}, {"n", 2}}}}}}},
          "online.sources: expected completions of the policy for 'grpo', which is an expectation "
          "under it, got those of 'reference'");
  const Json greedy = {{"from", "policy"}, {"name", "greedy"}, {"n", 0}, {"temperature", 0}};
  const Json drawn = {{"from", "policy"}};
  refused(
      {{"loss", {{"type", "remax"}}}, {"online", {{"sources", {drawn, greedy}}}}},
      "online.sources: expected one completion of 'greedy' in every round, as its reward is the "
      "baseline, got n 0");
  Json one = greedy;
  one["n"] = 1;
  refused(
      {{"loss", {{"type", "remax"}}},
       {"online", {{"sources", {drawn, one}}, {"reward", {{"clip", 1}}}}}},
      "online.reward: expected its defaults for 'remax', whose greedy baseline is a reward as it "
      "is, got others");
  refused({{"loss", {{"type", "grpo"}, {"kl", {{"target", 1}}}}}},
          "grpo: expected kl.target 0 for a KL in the loss, whose coefficient stays, got another "
          "target");
  refused({{"loss", {{"type", "rto"}}}},
          "online.process_reward.model: expected the model that DPO trained for 'rto', got none");
  refused({{"online", {{"imitate", {{"coefficient", 2}}}}}},
          "online.imitate.data: expected a file where the group has options, got none");
  refused({{"loss", {{"type", "grpoo"}}}},
          "loss: expected a loss or an objective, got 'grpoo'; did you mean 'grpo'?");
  refused({{"loss", {{"type", "grpo"}, {"beta", 0.1}}}},
          "grpo: expected kl.coefficient for TRL's 'beta', or a config of TRL's with \"trainer\": "
          "\"GRPOTrainer\"");
  refused(
      {{"loss", {{"type", "reinforce"}}}, {"sampling", {{"top_p", 0.9}}}},
      "online.sources: expected 'policy' to draw from the whole distribution (top_k 0, top_p 1, "
      "no min_new_tokens, no repetition_penalty), as the ratios of 'reinforce' are of that, got "
      "another one");
  refused({{"online", {{"replay", {{"share", 0.5}}}}}},
          "online.replay.share: expected 0 for 'grpo', whose advantages are of one round, got 0.5");
  refused({{"online", {{"select", {{"type", "all_pairs"}}}}}},
          "online.select: expected its default for 'grpo', which takes every completion, got "
          "{\"type\":\"all_pairs\"}");
  refused(
      {{"batch", {{"rows", 4}}}},
      "batch.rows: expected its default where online.rounds.steps cuts the rows of a round, got "
      "4");
  refused({{"loss", {{"type", "dpo"}}}, {"online", {{"reward", {{"clip", 1}}}}}},
          "online.reward: expected its defaults for 'dpo', which is no objective on tokens of "
          "rollouts, got others");
  refused({{"value", {{"body", "policy"}}}},
          "value: expected its defaults for 'grpo', which has no values, got others");
  Json rates = scene.config("refused");
  rates["online"]["rollouts"] = {{"priorities", true}};
  CHECK_THROWS_AS(run_config(rates), DataError);
  fs::remove_all(scene.file("refused"));
  refused({{"online", {{"rounds", {{"epochs", 1.5}}}}}},
          "online.rounds.epochs: expected whole passes over the rollouts for 'grpo', got 1.5");
  refused({{"loss", {{"type", "policy_gradient"}, {"advantage", {{"kind", "given"}}}}}},
          "loss.advantage: expected one that rewards decide in a run, got 'given' of "
          "'policy_gradient'");
  Json offline = scene.config("refused");
  offline.erase("online");
  offline["data"] = {{"train", scene.file("prompts.jsonl")}};
  CHECK_THROWS_AS(run_config(offline), Error);
}

TEST_CASE("a value model of another vocabulary is refused", "[run]") {
  const RolloutScene scene;
  const std::int64_t vocabulary = kTiny.vocab_size;
  for (const std::int64_t size : {vocabulary + 1, vocabulary}) {
    CAPTURE(size);
    DecoderOptions shape = kTiny;
    shape.vocab_size = size;
    const std::string path = scene.file("values-" + std::to_string(size));
    Decoder(shape).save(path);
    Json config = scene.config("run");
    config["loss"] = {{"type", "ppo"}};
    config["value"] = {{"path", path}};
    config["online"]["rounds"] = {{"rounds", 1}, {"prompts", 2}, {"steps", 1}};
    if (size == vocabulary) {
      CHECK(run_config(config).steps == 1);
      continue;
    }
    CHECK_THROWS_TEXT(run_config(config), ConfigError,
                      "value.path: expected a model with the policy's vocabulary of " +
                          std::to_string(vocabulary) + " tokens, got " + path + " with " +
                          std::to_string(size));
    CHECK_FALSE(fs::exists(scene.file("run")));
  }
}

}  // namespace
}  // namespace prefopt
