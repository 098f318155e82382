// SPDX-License-Identifier: Apache-2.0
// Runs of a policy that writes its own rows: rounds, resume at each point of one, and the configs
// of examples/configs/online.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/random.h"
#include "online/row_store.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "prefopt/online/environment.h"
#include "prefopt/online/rollout_file.h"
#include "prefopt/online/step_tree.h"
#include "prefopt/options.h"
#include "prefopt/run/run.h"
#include "support/catch.h"
#include "support/checkpoint_parts.h"
#include "support/counts.h"
#include "support/errors.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using testing_support::differing;
using testing_support::Json;
using testing_support::Parts;
using testing_support::parts_of;
using testing_support::read_lines;
using testing_support::read_text;
using testing_support::TempDir;

/// A program whose answer is a hash of the question: as good as random, and always the same.
Json hashing(const std::string& answer) {
  return {
      "/bin/sh", "-c",
      "while read -r line; do set -- $(printf %s \"$line\" | cksum); n=$(($1 % 90 + 5)); echo \"" +
          answer + "\"; done"};
}

/// An environment as good as random: of three turns or fewer, with rewards by a hash of all
/// actions.
class HashGame final : public Environment {
 public:
  explicit HashGame(const Episode& episode) : state_(static_cast<std::uint64_t>(episode.seed)) {}

  std::string start() override { return std::to_string(state_ % 7); }
  EnvironmentStep step(const std::string& action) override {
    for (const char byte : action) state_ = splitmix64(state_ ^ static_cast<unsigned char>(byte));
    return {.observation = ">" + std::to_string(state_ % 10),
            .reward = static_cast<double>(state_ % 1000),
            .done = state_ % 3 == 0};
  }

 private:
  std::uint64_t state_;
};

/// Returns a source of episodes with that game, which this registers once.
Json hash_game() {
  static const bool is_registered = [] {
    register_environment({.name = "hash_game", .make = [](std::string_view json) {
                            CHECK(json == "{}");
                            return [](const Episode& of) { return std::make_unique<HashGame>(of); };
                          }});
    return true;
  }();
  CHECK(is_registered);
  return {{"from", "environment"},
          {"environment", "hash_game"},
          {"n", 3},
          {"max_turns", 3},
          {"max_tokens", 24}};
}

Json random_rewards() { return hashing(R"({\"reward\": $n})"); }
Json random_preferences() { return hashing(R"({\"p\": 0.$n})"); }

/// Prompts, and configs of short runs on them.
class OnlineScene {
 public:
  OnlineScene() {
    ControlledTask task({.seed = 3});
    std::ofstream prompts(file("prompts.jsonl"));
    for (int i = 0; i < 8; ++i) prompts << Json{{"prompt", task.sample_prompt()}}.dump() << '\n';
    task.write_sft(file("rows.jsonl"), 8);
  }

  std::string file(const std::string& name) const { return folder_.file(name); }

  Json config(const std::string& run) const {
    return {{"output_dir", file(run)},
            {"loss", {{"type", "dpo"}}},
            {"model",
             {{"decoder",
               {{"hidden_size", 16},
                {"intermediate_size", 24},
                {"num_hidden_layers", 1},
                {"num_attention_heads", 2},
                {"num_key_value_heads", 1},
                // Large weights, so that a change of them changes what is drawn.
                {"initializer_range", 0.4},
                {"max_position_embeddings", 64}}}}},
            {"online",
             {{"prompts", file("prompts.jsonl")},
              {"sources", {{{"from", "policy"}, {"n", 2}}}},
              {"feedback", {{"reward", random_rewards()}}},
              {"select", {{"type", "pair"}}},
              {"rounds", {{"rounds", 3}, {"prompts", 4}, {"epochs", 1}}}}},
            {"batch", {{"rows", 2}}},
            {"optimizer", {{"learning_rate", 1e-2}}},
            {"sampling", {{"max_new_tokens", 4}}},
            {"checkpoint", {{"every", 1}, {"keep_last", 0}}},
            {"machine", {{"threads", 1}}},
            {"seed", 1}};
  }

 private:
  TempDir folder_;
};

TEST_CASE("a policy writes its own pairs, round after round", "[run]") {
  const OnlineScene scene;
  Json config = scene.config("run");
  config["online"]["eval_fraction"] = 0.25;
  config["online"]["rounds"]["prompts"] = 3;
  const RunResult result = run_config(config);
  CHECK(result.steps == 6);  // three pairs a round, two a step
  // Replayed rows make further steps: 4 rows in the first round, 6 in the second, 8 in the third.
  Json replay = scene.config("replay");
  replay["online"]["replay"] = {{"share", 0.5}};
  CHECK(run_config(replay).steps == 2 + 3 + 4);
  const auto rounds = read_lines(scene.file("run/rounds.jsonl"));
  REQUIRE(rounds.size() == 3);
  for (std::size_t i = 0; i < rounds.size(); ++i) {
    CHECK(rounds[i]["round"] == i + 1);
    CHECK(rounds[i]["step"] == 2 * i + 1);
    CHECK(rounds[i]["pairs/kept"] == 3);
    CHECK(rounds[i]["questions"] == 6);
    CHECK(rounds[i]["samples"].size() == 3);
  }
  // An evaluation before the first round and after each.
  std::vector<Json> evaluations;
  for (const auto& line : read_lines(scene.file("run/metrics.jsonl"))) {
    if (line.contains("eval_reward")) evaluations.push_back(line);
  }
  REQUIRE(evaluations.size() == 4);
  CHECK(evaluations[0]["eval_win_rate"] == 0.5);  // against itself
  CHECK_FALSE(evaluations[0].contains("eval_win_rate_last"));
  // Before training, the first policy and that of the evaluation before are one.
  CHECK(evaluations[1]["eval_win_rate_last"] == evaluations[1]["eval_win_rate"]);
  CHECK(evaluations[2].contains("eval_win_rate_last"));
  CHECK(evaluations[3]["step"] == 6);
  CHECK(Json::parse(read_text(scene.file("run/config.json")))["evaluate"]["best_metric"] ==
        "eval_reward");
  CHECK(read_text(scene.file("run/report.html")).find("Rounds") != std::string::npos);
}

TEST_CASE("rounds draw the same however completions are decoded together", "[run]") {
  const OnlineScene scene;
  for (const int at_once : {1, 3, 64}) {
    Json config = scene.config("at-once-" + std::to_string(at_once));
    config["online"]["at_once"] = at_once;
    config["batch"]["micro_rows"] = at_once == 3 ? 1 : 0;
    run_config(config);
  }
  const auto rounds = read_lines(scene.file("at-once-64/rounds.jsonl"));
  CHECK(read_lines(scene.file("at-once-1/rounds.jsonl")) == rounds);
  CHECK(rounds[0]["samples"] != rounds[1]["samples"]);
}

/// A config of episodes, whose rewards are the environment's.
Json episodes_config(const OnlineScene& scene, const std::string& run) {
  Json config = scene.config(run);
  config["online"]["sources"] = {hash_game()};
  config["online"]["select"] = {{"type", "all_pairs"}, {"weigh_prompts", false}};
  config["online"].erase("feedback");
  return config;
}

TEST_CASE("episodes of an environment are rounds like others", "[run]") {
  const OnlineScene scene;
  for (const int at_once : {1, 4, 64}) {
    Json config = episodes_config(scene, "at-once-" + std::to_string(at_once));
    config["online"]["at_once"] = at_once;
    config["online"]["eval_fraction"] = 0.25;
    config["online"]["save_rollouts"] = true;
    CHECK(run_config(config).steps >= 6);
  }
  for (const std::string file :
       {"rounds.jsonl", "rollouts/round-000001.jsonl", "rollouts/round-000003.jsonl"}) {
    CHECK(read_text(scene.file("at-once-1/" + file)) ==
          read_text(scene.file("at-once-64/" + file)));
    CHECK(read_text(scene.file("at-once-4/" + file)) ==
          read_text(scene.file("at-once-64/" + file)));
  }
  const auto rollouts = load_rollouts(scene.file("at-once-64/rollouts/round-000001.jsonl"));
  REQUIRE(rollouts.size() == 12);
  std::set<std::size_t> turns;
  for (std::size_t i = 0; i < rollouts.size(); ++i) {
    const Rollout& rollout = rollouts[i];
    CHECK(rollout.group == static_cast<std::int64_t>(i / 3));
    CHECK(rollout.prompt == rollouts[i / 3 * 3].prompt);
    // Bytes that are no text are not saved as they are.
    CHECK(ByteTokenizer().decode(rollout.prompt).starts_with(rollout.prompt_text));
    turns.insert(rollout.turn_ends.size());
  }
  CHECK(turns.size() > 1);
  // Held-out prompts are played as well, the same games each time.
  std::vector<Json> evaluations;
  for (const auto& line : read_lines(scene.file("at-once-64/metrics.jsonl"))) {
    if (line.contains("eval_reward")) evaluations.push_back(line);
  }
  REQUIRE(evaluations.size() == 4);
  CHECK(evaluations[0]["eval_win_rate"] == 0.5);  // against itself
}

TEST_CASE("the rows of episodes leave out what the environment wrote", "[run]") {
  const OnlineScene scene;
  Json config = episodes_config(scene, "run");
  config["online"]["rounds"] = {{"rounds", 1}, {"prompts", 8}};
  config["online"]["save_rollouts"] = true;
  const std::string checkpoint = run_config(config).checkpoint;
  const auto rollouts = load_rollouts(scene.file("run/rollouts/round-000001.jsonl"));
  const auto tensors = read_safetensors(checkpoint + "/training_state.safetensors").tensors;
  const std::map<std::string, at::Tensor> state(tensors.begin(), tensors.end());
  const auto rows = detail::unpack_rows({state.at("source.rows"), state.at("source.columns")});
  REQUIRE(rows.size() > 8);
  std::int64_t masked = 0;
  const auto check = [&](const std::vector<std::int64_t>& completion, const TokenMask& mask,
                         const TokenRow& row) {
    const auto of = std::find_if(rollouts.begin(), rollouts.end(), [&](const Rollout& rollout) {
      return rollout.prompt == row.prompt && rollout.completion == completion;
    });
    REQUIRE(of != rollouts.end());
    CHECK(mask == of->acted);
    // The environment writes '>' and a digit after each action but the last.
    const auto hidden = std::count(mask.begin(), mask.end(), 0);
    CHECK(hidden == 2 * (std::ssize(of->turn_ends) - 1));
    for (std::size_t t = 0; t < mask.size(); ++t) {
      if (mask[t] == 0 && t + 1 < mask.size() && mask[t + 1] == 0) CHECK(completion[t] == '>');
    }
    masked += hidden;
  };
  for (const TokenRow& row : rows) {
    check(row.chosen, row.chosen_mask, row);
    check(row.rejected, row.rejected_mask, row);
  }
  CHECK(masked > 0);
}

TEST_CASE("saved rollouts train as they did when they were drawn", "[run]") {
  const OnlineScene scene;
  Json config = episodes_config(scene, "drawn");
  config["online"]["rounds"] = {{"rounds", 1}, {"prompts", 4}};
  config["online"]["save_rollouts"] = true;
  const Parts drawn = parts_of(run_config(config).checkpoint);
  config["output_dir"] = scene.file("replayed");
  config["online"]["save_rollouts"] = false;
  const std::string file = scene.file("drawn/rollouts/round-000001.jsonl");
  config["online"]["sources"] = {{{"from", "file"}, {"path", file}, {"n", 3}}};
  const std::string checkpoint = run_config(config).checkpoint;
  const Parts replayed = parts_of(checkpoint);
  for (const auto& name : differing(replayed, drawn)) {
    CHECK_FALSE(name.starts_with("model.safetensors:"));
  }
  config["output_dir"] = scene.file("missing");
  config["online"]["sources"][0]["n"] = 4;
  try {
    run_config(config);
    FAIL("a file of fewer rollouts was taken");
  } catch (const DataError& error) {
    const std::string text = error.what();
    CHECK(text.starts_with(file + ": expected 4 rollouts of the prompt '"));
    CHECK(text.ends_with("', got 3"));
  }
}

TEST_CASE("a game that dies in the second round loses nothing", "[run]") {
  const OnlineScene scene;
  // It dies at its 41st question, of which a round has 32, while a file is there. Rewards follow
  // from actions, not from the numbers of episodes.
  const std::string mark = scene.file("mark");
  const std::string game =
      "i=0; while read -r line; do i=$((i + 1)); [ -e " + mark +
      R"( ] && [ $i -gt 40 ] && exit 1; set -- $(printf %s "${line#*action}" | cksum); )"
      R"(case "$line" in *prompt*) echo '{"observation": "go"}';; *end*) echo '{}';; )"
      R"(*) echo "{\"observation\": \">\", \"reward\": $(($1 % 90)), \"done\": false}";; esac; )"
      "done";
  Json config = episodes_config(scene, "straight");
  config["online"]["sources"] = {{{"from", "environment"},
                                  {"command", {"/bin/sh", "-c", game}},
                                  {"n", 2},
                                  {"max_turns", 2},
                                  {"max_tokens", 24}}};
  const Parts expected = parts_of(run_config(config).checkpoint);
  config["output_dir"] = scene.file("interrupted");
  std::ofstream(mark) << "x";
  CHECK_THROWS_AS(run_config(config), DataError);
  const auto lines = read_lines(scene.file("interrupted/metrics.jsonl"));
  REQUIRE_FALSE(lines.empty());
  CHECK(lines.back()["round"] == 1);
  fs::remove(mark);
  const RunResult resumed = run_config(config, "auto");
  CHECK(differing(parts_of(resumed.checkpoint), expected) == std::set<std::string>());
}

/// Changes of the config that make its rows steps of a tree search.
Json searching() {
  return {{"loss", {{"type", "dpo"}, {"use_label_probs", true}}},
          {"online",
           {{"sources",
             {{{"from", "tree"},
               {"max_new_tokens", 6},
               // Rewards are far larger than PUCT's bonus, which would try one step alone.
               {"tree",
                {{"rule", "uct"},
                 {"back_up", "mean"},
                 {"step_end", ""},
                 {"step_tokens", 2},
                 {"breadth", 3},
                 {"max_depth", 3},
                 {"iterations", 6}}}}}},
            {"select", {{"type", "siblings"}}}}}};
}

/// Changes of the config, one for each part of the engine that has a state.
std::vector<std::pair<std::string, Json>> components() {
  const Json advantage = {{"type", "advantage"}, {"by", "reward"}, {"baseline", "group"}};
  const Json policy_gradient = {{"type", "policy_gradient"}, {"tau", 0.01}};
  return {
      {"plain", Json::object()},
      {"last", {{"reference", {{"rule", "last"}}}}},
      {"combined",
       {{"reference", {{"rule", "combined"}, {"initial_weight", 0.3}}},
        {"loss", {{"type", "ipo"}, {"length_normalized", false}}}}},
      {"random-past", {{"reference", {{"rule", "random_past"}, {"keep", 2}}}}},
      {"ema", {{"reference", {{"rule", "ema"}, {"decay", 0.7}}}}},
      {"adapter", {{"model", {{"use_lora", true}, {"lora", {{"r", 2}}}}}}},
      {"replay", {{"online", {{"replay", {{"share", 0.5}, {"decay", 0.5}}}}}}},
      {"steps-of-a-round", {{"online", {{"rounds", {{"steps", 2}}}}}, {"batch", {{"rows", 16}}}}},
      {"extrapolation",
       {{"online", {{"rounds", {{"extrapolate", 0.4}, {"restart_optimizer", true}}}}}}},
      {"from-the-start", {{"online", {{"rounds", {{"start", "initial"}}}}}}},
      {"sources",
       {{"online",
         {{"sources",
           {{{"from", "policy"}, {"n", 2}, {"roll_in", {{"from", "mixture"}}}},
            {{"from", "last"}},
            {{"from", "past"}, {"keep", 2}},
            {{"from", "ema"}, {"decay", 0.5}},
            {{"from", "mixture"}},
            {{"from", "reference"}}}},
          {"select", {{"type", "best_worst"}}}}}}},
      {"evaluations",
       {{"online", {{"eval_fraction", 0.25}, {"rounds", {{"prompts", 3}}}}},
        {"evaluate", {{"sample_prompts", 0}}}}},
      {"advantages",
       {{"online", {{"rounds", {{"rounds", 6}, {"steps", 1}}}, {"select", advantage}}},
        {"batch", {{"rows", 16}}},
        {"loss", policy_gradient}}},
      {"episodes",
       {{"online",
         {{"sources",
           {hash_game(),
            {{"from", "environment"},
             {"name", "other"},
             {"environment", "hash_game"},
             {"max_tokens", 20}}}},
          {"feedback", nullptr},
          {"select", {{"type", "best_worst"}}}}}}},
      {"trees", searching()},
  };
}

TEST_CASE("a run that is resumed at any step of a round ends in the same bits", "[run]") {
  const OnlineScene scene;
  std::int64_t resumed = 0;
  for (const auto& [name, change] : components()) {
    CAPTURE(name);
    Json config = scene.config(name);
    config.merge_patch(change);
    const RunResult straight = run_config(config);
    const Parts expected = parts_of(straight.checkpoint);
    REQUIRE(straight.steps >= 6);
    // Both ends of a round, its middle, and the first step of the last one.
    for (const std::int64_t step : {std::int64_t{1}, std::int64_t{2}, straight.steps - 1}) {
      CAPTURE(step);
      config["output_dir"] = scene.file(name + "-" + std::to_string(step));
      const RunResult again =
          run_config(config, scene.file(name + "/checkpoints/step-" + std::to_string(step)));
      CHECK(again.steps == straight.steps);
      CHECK(differing(parts_of(again.checkpoint), expected) == std::set<std::string>());
      ++resumed;
    }
  }
  testing_support::report_count("runs resumed in a round", resumed);
}

TEST_CASE("each part of the state of rounds matters", "[run]") {
  const OnlineScene scene;
  Json config = scene.config("straight");
  config.merge_patch({{"online",
                       {{"rounds", {{"rounds", 5}, {"extrapolate", 0.4}}},
                        {"replay", {{"share", 0.5}}},
                        {"sources",
                         {{{"from", "policy"}},
                          {{"from", "past"}, {"keep", 4}},
                          {{"from", "ema"}, {"decay", 0.5}}}},
                        {"select", {{"type", "best_worst"}}}}},
                      {"reference", {{"rule", "last"}}}});
  const RunResult straight = run_config(config);
  const Parts expected = parts_of(straight.checkpoint);
  const std::string from = scene.file("straight/checkpoints/step-3");
  const auto file = read_safetensors(from + "/training_state.safetensors");
  std::set<std::string> parts;
  for (const auto& [tensor, value] : file.tensors) {
    if (tensor.starts_with("source.")) parts.insert(tensor.substr(0, tensor.find('.', 7)));
  }
  CHECK(parts == std::set<std::string>{"source.columns", "source.ema", "source.past",
                                       "source.previous", "source.rows"});
  for (const std::string& part :
       {std::string("source.ema"), std::string("source.past"), std::string("source.previous")}) {
    CAPTURE(part);
    const std::string copy = scene.file(part + "-step-3");
    testing_support::copy_changed(from, copy, [&](auto& tensors, Json&) {
      for (auto& [tensor, value] : tensors) {
        if (tensor.starts_with(part) && value.is_floating_point()) value.mul_(-3);
      }
    });
    config["output_dir"] = scene.file(part + "-again");
    const RunResult again = run_config(config, copy);
    const auto changed = differing(parts_of(again.checkpoint), expected);
    CHECK(std::any_of(changed.begin(), changed.end(),
                      [](const auto& name) { return name.starts_with("model.safetensors:"); }));
  }
}

TEST_CASE("the evaluation before is part of a checkpoint", "[run]") {
  const OnlineScene scene;
  Json config = scene.config("straight");
  config["online"]["eval_fraction"] = 0.25;
  config["online"]["rounds"]["prompts"] = 3;
  // The first completion wins wherever the two differ.
  config["online"]["feedback"] = {
      {"program", {"/bin/sh", "-c", "while read -r line; do echo '{\"p\": 0.9}'; done"}}};
  const std::string straight = run_config(config).checkpoint;
  const auto evaluation_of = [](const std::string& checkpoint) {
    return Json::parse(read_text(checkpoint + "/evaluation.json"));
  };
  const Json expected = evaluation_of(straight)["last_evaluation"];
  CHECK(expected["win_rate_last"] > 0.5);
  // The policy at the end of the second round, as it was evaluated after its step was saved.
  const std::string from = scene.file("straight/checkpoints/step-4");
  config["output_dir"] = scene.file("again");
  CHECK(evaluation_of(run_config(config, from).checkpoint)["last_evaluation"] == expected);
  // With the completions of the last policy in place of its own: equal ones are a tie.
  Json changed = evaluation_of(from);
  changed["source"] = evaluation_of(straight)["source"];
  testing_support::write_text(from + "/evaluation.json", changed.dump());
  config["output_dir"] = scene.file("changed");
  const Json other = evaluation_of(run_config(config, from).checkpoint)["last_evaluation"];
  CHECK(other["win_rate_last"] == 0.5);
  CHECK(other["win_rate"] == expected["win_rate"]);
}

TEST_CASE("the turns of a user in given completions do not train", "[run]") {
  const OnlineScene scene;
  const Json turn = {{"role", "user"}, {"content", "a"}};
  const Json answer = {{"role", "assistant"}, {"content", "b"}};
  const Json row = {{"prompt", {turn}}, {"completion", {answer, turn, answer}}};
  std::ofstream(scene.file("turns.jsonl")) << row.dump() << '\n';
  Json config = scene.config("run");
  config["online"]["prompts"] = scene.file("turns.jsonl");
  config["online"]["sources"] = {{{"from", "data"}, {"column", "chosen"}}, {{"from", "policy"}}};
  config["online"]["select"] = {{"type", "against_data"}, {"weigh_prompts", false}};
  config["online"].erase("feedback");
  config["online"]["rounds"] = {{"rounds", 1}};
  const std::string checkpoint = run_config(config).checkpoint;
  const auto tensors = read_safetensors(checkpoint + "/training_state.safetensors").tensors;
  const std::map<std::string, at::Tensor> state(tensors.begin(), tensors.end());
  const auto rows = detail::unpack_rows({state.at("source.rows"), state.at("source.columns")});
  REQUIRE(rows.size() == 1);
  const auto& mask = rows[0].chosen_mask;
  CHECK(mask.size() == rows[0].chosen.size());
  CHECK(std::count(mask.begin(), mask.end(), 0) > 0);
  CHECK(rows[0].rejected_mask.empty());
}

TEST_CASE("sources take turns by rounds", "[run]") {
  const OnlineScene scene;
  Json config = scene.config("drawn");
  config["online"]["rounds"] = {{"rounds", 20}, {"prompts", 1}};
  config["checkpoint"] = {{"every", 0}};
  const auto writers = [&](const Json& one, const Json& other) {
    config["online"]["sources"] = {{{"from", "policy"}, {"n", 2}, {"rounds", one}},
                                   {{"from", "reference"}, {"n", 2}, {"rounds", other}}};
    run_config(config);
    std::vector<std::set<std::string>> names;
    for (const Json& line : read_lines(
             scene.file(fs::path(config["output_dir"]).filename().string() + "/rounds.jsonl"))) {
      std::set<std::string>& of_round = names.emplace_back();
      for (const Json& completion : line["samples"][0]["completions"]) {
        of_round.insert(completion["source"]);
      }
    }
    return names;
  };
  const auto drawn = writers({{"below", 0.6}}, {{"above", 0.6}});
  REQUIRE(drawn.size() == 20);
  const auto by_policy = std::count(drawn.begin(), drawn.end(), std::set<std::string>{"policy"});
  const auto by_other = std::count(drawn.begin(), drawn.end(), std::set<std::string>{"reference"});
  CHECK(by_policy + by_other == 20);
  CHECK(by_policy > 6);
  CHECK(by_other > 2);
  config["output_dir"] = scene.file("switched");
  const auto switched = writers({{"last", 7}}, {{"first", 7}});
  REQUIRE(switched.size() == 20);
  for (std::size_t i = 0; i < switched.size(); ++i) {
    CHECK(switched[i].contains("policy") == (i < 7));
    CHECK(switched[i].contains("reference") == (i >= 6));
  }
}

TEST_CASE("what becomes of given completions is noted", "[run]") {
  const OnlineScene scene;
  std::ofstream(scene.file("given.jsonl"))
      << Json{{"prompt", "a"}, {"completion", "b"}}.dump() << '\n'
      << Json{{"prompt", "c"}, {"completion", std::string(40, 'd')}}.dump() << '\n'
      << Json{{"prompt", "e"}, {"completion", "f"}}.dump() << '\n';
  Json config = scene.config("run");
  config["data"] = {{"max_completion_length", 8}};
  config["online"]["prompts"] = scene.file("given.jsonl");
  config["online"]["sources"] = {{{"from", "data"}, {"column", "chosen"}}, {{"from", "policy"}}};
  config["online"]["select"] = {{"type", "against_data"}, {"weigh_prompts", false}};
  config["online"].erase("feedback");
  config["online"]["rounds"] = {{"rounds", 1}};
  run_config(config);
  const std::string notes = read_text(scene.file("run/notes.jsonl"));
  CHECK(notes.find("online.prompts: 3 of 3 rows of " + scene.file("given.jsonl") + " are used") !=
        std::string::npos);
  CHECK(notes.find("online.prompts: truncated") != std::string::npos);
}

TEST_CASE("a run whose last rounds have no rows ends with what it has", "[run]") {
  const OnlineScene scene;
  Json config = scene.config("run");
  // A program that counts its questions over all runs, and rates the first ones alone.
  const auto rates_first = [&](const std::string& name, int most) -> Json {
    const std::string count = scene.file(name);
    return {"/bin/sh", "-c",
            "while read -r line; do echo >> " + count + "; i=$(wc -l < " + count +
                "); echo \"{\\\"reward\\\": $((i > " + std::to_string(most) +
                " ? 0 : i))}\"; done"};
  };
  config["online"]["feedback"]["reward"] = rates_first("eight", 8);
  config["online"]["rounds"]["rounds"] = 2;
  CHECK(run_config(config).steps == 2);
  const auto rounds = read_lines(scene.file("run/rounds.jsonl"));
  REQUIRE(rounds.size() == 2);
  CHECK(rounds[1]["round"] == 2);
  CHECK(rounds[1]["step"] == 2);
  CHECK(rounds[1]["pairs/kept"] == 0);
  CHECK(rounds[1]["pairs/ties"] == 4);
  CHECK(rounds[1]["samples"].size() == 4);
  // The round is drawn again, and is one line again.
  CHECK(run_config(config, "auto").steps == 2);
  CHECK(read_lines(scene.file("run/rounds.jsonl")).size() == 2);

  // The last step is evaluated, though only the empty round shows that it is the last.
  config["output_dir"] = scene.file("evaluated");
  config["online"]["eval_fraction"] = 0.5;
  config["evaluate"] = {{"every", 5}, {"sample_prompts", 0}};
  // The evaluation before training has the first four, and the first round the next eight.
  config["online"]["feedback"]["reward"] = rates_first("twelve", 12);
  CHECK(run_config(config).steps == 2);
  CHECK(read_lines(scene.file("evaluated/rounds.jsonl")).size() == 2);
  const auto evaluations = [&] {
    std::vector<Json> lines = read_lines(scene.file("evaluated/metrics.jsonl"));
    std::erase_if(lines, [](const Json& line) { return !line.contains("eval_reward"); });
    return lines;
  };
  REQUIRE(evaluations().size() == 2);
  CHECK(evaluations()[1]["step"] == 2);
  CHECK(run_config(config, "auto").steps == 2);
  CHECK(evaluations().size() == 2);
  CHECK(read_lines(scene.file("evaluated/rounds.jsonl")).size() == 2);
  config.erase("evaluate");
  config["online"].erase("eval_fraction");

  config["output_dir"] = scene.file("empty");
  config["online"]["feedback"]["reward"] = {"/bin/sh", "-c",
                                            "while read -r line; do echo '{\"reward\": 0}'; done"};
  config["online"]["rounds"]["rounds"] = 5;
  CHECK_THROWS_TEXT(run_config(config), DataError,
                    "online: expected rows of a round, got none in 3 rounds one after the other "
                    "(in the last one 4 ties, 0 identical, 0 failed, 0 unusable)");
  CHECK(read_lines(scene.file("empty/rounds.jsonl")).size() == 3);
  // A run that cannot train at all is no success either.
  config["output_dir"] = scene.file("nothing");
  config["online"]["rounds"]["rounds"] = 1;
  CHECK_THROWS_TEXT(run_config(config), DataError,
                    "online: expected rows of a round, got none in the only round (4 ties, 0 "
                    "identical, 0 failed, 0 unusable)");
  CHECK(read_lines(scene.file("nothing/rounds.jsonl")).size() == 1);
}

TEST_CASE("a judge that dies in the second round loses nothing", "[run]") {
  const OnlineScene scene;
  // It dies at its seventh question while a file is there.
  const std::string mark = scene.file("mark");
  const std::string judge = "i=0; while read -r line; do i=$((i + 1)); [ -e " + mark +
                            " ] && [ $i -gt 6 ] && exit 1; set -- $(printf %s \"$line\" | cksum); "
                            "echo \"{\\\"p\\\": 0.$(($1 % 90 + 5))}\"; done";
  Json config = scene.config("straight");
  config["online"]["feedback"] = {
      {"judge", {"/bin/sh", "-c", judge}}, {"both_orders", false}, {"retries", 0}};
  const Parts expected = parts_of(run_config(config).checkpoint);

  config["output_dir"] = scene.file("interrupted");
  std::ofstream(mark) << "x";
  CHECK_THROWS_AS(run_config(config), DataError);
  const auto lines = read_lines(scene.file("interrupted/metrics.jsonl"));
  REQUIRE_FALSE(lines.empty());
  CHECK(lines.back()["round"] == 1);
  fs::remove(mark);
  const RunResult resumed = run_config(config, "auto");
  CHECK(differing(parts_of(resumed.checkpoint), expected) == std::set<std::string>());
}

TEST_CASE("failures of feedback count over all processes of a run", "[run]") {
  const OnlineScene scene;
  // One question of the eight of a round has no answer.
  const std::string count = scene.file("count");
  const std::string program =
      "while read -r line; do echo >> " + count + "; i=$(wc -l < " + count +
      "); [ $((i % 8)) = 1 ] && i=null; echo \"{\\\"reward\\\": $i}\"; done";
  Json config = scene.config("run");
  config["online"]["feedback"] = {{"reward", {"/bin/sh", "-c", program}}, {"max_failures", 2}};
  const std::string third = "{\"reward\": null}; failure 3 where max_failures is 2";
  const auto fails_by_third = [&] {
    try {
      run_config(config, "auto");
    } catch (const DataError& error) {
      return std::string(error.what()).ends_with(third);
    }
    return false;
  };
  CHECK(fails_by_third());
  CHECK(read_lines(scene.file("run/rounds.jsonl")).size() == 2);
  // A new process starts with the two of the rounds that are through.
  CHECK(fails_by_third());
  // Whoever can bear more resumes the run.
  config["online"]["feedback"]["max_failures"] = 3;
  CHECK(run_config(config, "auto").steps == 6);
}

TEST_CASE("online configs that cannot be meant are refused", "[run]") {
  const OnlineScene scene;
  const auto refused = [&](const Json& change, const std::string& error) {
    CAPTURE(change.dump());
    Json config = scene.config("refused");
    config.merge_patch(change);
    CHECK_THROWS_TEXT(run_config(config), ConfigError, error);
    CHECK_FALSE(fs::exists(scene.file("refused")));
  };
  Json rows = scene.config("refused");
  rows["online"]["prompts"] = scene.file("rows.jsonl");
  CHECK_THROWS_TEXT(
      run_config(rows), DataError,
      scene.file("rows.jsonl") + ":1: expected a prompt alone, got a completion in 'completion'");
  refused({{"online", {{"sources", Json::array()}}}},
          "online.sources: expected a list of sources, got []");
  refused({{"evaluate", {{"patience", 2}}}},
          "evaluate.patience: expected evaluations to count, got no held-out prompts; set "
          "online.eval_prompts or online.eval_fraction");
  refused({{"evaluate", {{"best_metric", "eval_reward"}}}},
          "evaluate.best_metric: expected held-out prompts to find 'eval_reward' of, got none; set "
          "online.eval_prompts or online.eval_fraction");
  refused({{"online", {{"sources", {{{"from", "reference"}, {"weight", 0.5}}}}}}},
          "online.sources[0]: expected no weight where from is 'reference', which does not use it");
  refused({{"online", {{"sources", {{{"from", "policy"}}, {{"from", "policy"}}}}}}},
          "online.sources: expected a name of each source, got 'policy' twice");
  refused({{"online", {{"sources", {{{"from", "policy"}, {"rounds", {{"last", 2}}}}}}}}},
          "online.sources: expected one that writes in each round, got none in round 3 where it "
          "draws 0");
  refused({{"online",
            {{"sources",
              {{{"from", "policy"}, {"rounds", {{"above", 0.5}}}},
               {{"from", "reference"}, {"rounds", {{"below", 0.25}}}}}}}}},
          "online.sources: expected one that writes in each round, got none in round 1 where it "
          "draws 0.25");
  refused({{"online", {{"rounds", {{"prompts", 9}}}}}},
          "online.rounds.prompts: expected at most the 8 prompts of the file, got 9");
  refused(
      {{"online", {{"rounds", {{"steps", 1}}}}}},
      "batch.rows: expected its default where online.rounds.steps cuts the rows of a round, got "
      "2");
  refused({{"data", {{"train", scene.file("rows.jsonl")}}}},
          "data.train: expected no rows where online.prompts gives prompts, got '" +
              scene.file("rows.jsonl") + "'");
  refused({{"online", {{"select", {{"type", "pair"}, {"soft", true}}}}}},
          "online.select: expected columns that the loss reads, got 'label_prob', which this loss "
          "does not read; see its options in `prefopt losses`");
  refused({{"reference", {{"rule", "ema"}, {"initial_weight", 0.2}}}},
          "reference.initial_weight: expected its default unless rule is 'combined'");
  const auto refused_source = [&](const Json& source, const std::string& error) {
    refused({{"online", {{"sources", {source}}}}}, "online.sources[0]: expected " + error);
  };
  const Json game = hash_game();
  const auto changed = [&](const std::string& key, const Json& value) {
    Json source = game;
    source[key] = value;
    return source;
  };
  refused_source({{"from", "environment"}}, "one of command and environment, got none");
  refused_source(changed("command", {"x"}), "one of command and environment, got both");
  refused_source(changed("workers", 2),
                 "no workers with an environment that is no program, got one; it would do nothing");
  refused_source(changed("roll_in", {{"from", "policy"}}),
                 "no roll_in where from is 'environment', which does not use it");
  refused_source({{"from", "policy"}, {"max_turns", 2}},
                 "no max_turns where from is 'policy', which does not use it");
  refused_source({{"from", "file"}}, "a path where from is 'file', got none");
  refused_source({{"from", "file"}, {"path", "x"}, {"temperature", 1}},
                 "no temperature where from is 'file', which does not use it");
  refused({{"online", {{"sources", {changed("environment", "hash_gam")}}}}},
          "online.sources[0].environment: expected a known environment, got 'hash_gam'; did you "
          "mean 'hash_game'?");
  refused({{"online", {{"sources", {changed("max_tokens", 61)}}}}},
          "online.sources[0]: expected max_tokens of at most 59, which the model's 64 positions "
          "leave after the longest prompt, got 61");
  refused({{"online",
            {{"sources", {game, {{"from", "policy"}}}},
             {"feedback", {{"reward", nullptr}, {"environment", true}}}}}},
          "online.feedback: expected sources 'environment' or 'file' alone where environment is "
          "true, got 'policy', whose completions have no reward");
  refused({{"online",
            {{"sources", {changed("temperature", 0.5)}},
             {"rounds", {{"steps", 1}}},
             {"select", {{"type", "advantage"}, {"by", "reward"}, {"baseline", "group"}}}}},
           {"batch", {{"rows", 16}}},
           {"loss", {{"type", "policy_gradient"}, {"tau", 0.01}}}},
          "online.sources: expected 'environment' to draw from the policy's own distribution, as "
          "the loss or the selection weighs completions by it, got temperature, top_k, top_p, "
          "repetition_penalty or min_new_tokens of another one");
  refused({{"model", {{"use_lora", true}}}, {"online", {{"rounds", {{"extrapolate", 0.3}}}}}},
          "online.rounds.extrapolate: expected 0 where the policy trains an adapter, got 0.3");
}

/// LOOP's objective takes every episode: two passes over two rounds, which change the policy.
void check_episodes_trained(const OnlineScene& scene, const std::string& run, std::int64_t steps) {
  CHECK(steps == 2 * 2 * 3);
  for (const Json& round : read_lines(scene.file(run + "/rounds.jsonl"))) {
    CHECK(round["reward_std"] > 0);
    CHECK_FALSE(round.contains("pairs/kept"));
  }
  std::set<double> distances;
  std::int64_t moved = 0;
  for (const Json& line : read_lines(scene.file(run + "/metrics.jsonl"))) {
    if (!line.contains("approx_kl")) continue;
    if (line["grad_norm"] > 0) ++moved;
    distances.insert(line["approx_kl"].get<double>());
  }
  CHECK(moved >= steps / 2);
  CHECK(distances.size() > 2);  // later steps find another policy than the one that wrote
}

TEST_CASE("a tree search writes the pairs of a run", "[run]") {
  const OnlineScene scene;
  for (const int at_once : {1, 64}) {
    Json config = scene.config("at-once-" + std::to_string(at_once));
    config.merge_patch(searching());
    config["online"]["at_once"] = at_once;
    config["online"]["eval_fraction"] = 0.25;
    config["online"]["rounds"]["prompts"] = 3;
    run_config(config);
  }
  for (const std::string file : {"trees/round-000001.jsonl", "trees/round-000003.jsonl"}) {
    CHECK(read_text(scene.file("at-once-1/" + file)) ==
          read_text(scene.file("at-once-64/" + file)));
  }
  const auto trees = load_trees(scene.file("at-once-64/trees/round-000001.jsonl"));
  REQUIRE(trees.size() == 3);
  std::int64_t pairs = 0;
  for (const StepTree& tree : trees) {
    CHECK(tree.iterations() == 6);
    for (const StepNode& parent : tree.nodes()) {
      std::set<double> values;
      for (const std::int64_t child : parent.children) {
        if (tree.node(child).visits > 0) values.insert(tree.node(child).value);
      }
      pairs += values.size() > 1 ? 1 : 0;
    }
  }
  CHECK(pairs > 3);
  const auto rounds = read_lines(scene.file("at-once-64/rounds.jsonl"));
  CHECK(rounds.at(0)["pairs/kept"] == pairs);
  // Another round searches other trees, as the policy has changed.
  CHECK(load_trees(scene.file("at-once-64/trees/round-000003.jsonl"))[0].nodes().size() > 6);
  const std::string page = read_text(scene.file("at-once-64/report.html"));
  CHECK(page.find("<h2>Trees</h2>") != std::string::npos);
  std::size_t points = 0;
  const auto last = load_trees(scene.file("at-once-64/trees/round-000003.jsonl"));
  for (const StepTree& tree : last) points += tree.nodes().size();
  std::size_t drawn = 0;
  for (std::size_t at = page.find("<title>Q "); at != std::string::npos;
       at = page.find("<title>Q ", at + 1)) {
    ++drawn;
  }
  CHECK(drawn == points);
}

TEST_CASE("the rows of a tree search are steps at one state", "[run]") {
  const OnlineScene scene;
  Json config = scene.config("run");
  config.merge_patch(searching());
  config["online"]["rounds"] = {{"rounds", 1}, {"prompts", 8}};
  const std::string checkpoint = run_config(config).checkpoint;
  const auto trees = load_trees(scene.file("run/trees/round-000001.jsonl"));
  const auto tensors = read_safetensors(checkpoint + "/training_state.safetensors").tensors;
  const std::map<std::string, at::Tensor> state(tensors.begin(), tensors.end());
  const auto rows = detail::unpack_rows({state.at("source.rows"), state.at("source.columns")});
  REQUIRE(rows.size() > 8);
  for (const TokenRow& row : rows) {
    std::int64_t found = 0;
    for (const StepTree& tree : trees) {
      for (std::int64_t place = 0; place < std::ssize(tree.nodes()); ++place) {
        if (tree.node(place).children.empty() || tree.context(place) != row.prompt) continue;
        const StepNode* best = nullptr;
        const StepNode* worst = nullptr;
        for (const std::int64_t child : tree.node(place).children) {
          const StepNode& node = tree.node(child);
          if (node.visits == 0) continue;
          if (best == nullptr || node.value > best->value) best = &node;
          if (worst == nullptr || node.value < worst->value) worst = &node;
        }
        REQUIRE(best != nullptr);
        if (best->tokens != row.chosen || worst->tokens != row.rejected) continue;
        ++found;
        const double kept = static_cast<double>(worst->visits) / static_cast<double>(best->visits);
        CHECK(row.columns[Column::kLabelProb] == std::max(0.5, 1 / (1 + kept)));
      }
    }
    CHECK(found >= 1);
  }
  // The siblings of a decision point share its state in the packed stream.
  const TokenBatch batch = make_pair_batch({rows[0]});
  REQUIRE(batch.packed->groups.size() == 1);
  CHECK(batch.packed->groups[0].shared >= std::ssize(rows[0].prompt) - 1);
  CHECK(batch.packed->groups[0].branches.size() == 2);
}

TEST_CASE("what does not go with a tree search is refused", "[run]") {
  const OnlineScene scene;
  const auto refused = [&](const Json& change, const std::string& text) {
    Json config = scene.config("run");
    config.merge_patch(searching());
    config.merge_patch(change);
    CHECK_THROWS_TEXT(run_config(config), ConfigError, text);
  };
  const auto with_select = [](const char* type) {
    return Json{{"loss", {{"use_label_probs", false}}}, {"online", {{"select", {{"type", type}}}}}};
  };
  refused(with_select("pair"),
          "online.select: expected one that pairs steps, 'siblings', of a source 'tree', got "
          "{\"type\":\"pair\",\"soft\":false}");
  refused({{"online", {{"sources", {{{"from", "policy"}, {"n", 2}}}}}}},
          "online.sources: expected a source 'tree' for a selection that pairs steps, got none");
  refused({{"loss", {{"use_label_probs", false}}}},
          "online.select: expected columns that the loss reads, got 'label_prob', which this loss "
          "does not read; see its options in `prefopt losses`");
  refused({{"online", {{"feedback", {{"reward", nullptr}, {"judge", random_preferences()}}}}}},
          "online.feedback: expected rewards, of the ends of a source 'tree', got none");
  refused({{"online", {{"sources", {{{"from", "tree"}}, {{"from", "policy"}}}}}}},
          "online.sources: expected a source 'tree' alone, got 2 sources");
  refused({{"online", {{"sources", {{{"from", "tree"}, {"n", 2}}}}}}},
          "online.sources[0]: expected no n where from is 'tree', which does not use it");
  refused({{"online", {{"sources", {{{"from", "policy"}, {"tree", {{"breadth", 2}}}}}}}}},
          "online.sources[0]: expected no tree where from is 'policy', which does not use it");
  Json objective = scene.config("run");
  objective.merge_patch(searching());
  objective["loss"] = {{"type", "grpo"}};
  objective["online"].erase("select");
  objective["batch"].erase("rows");
  CHECK_THROWS_TEXT(run_config(objective), ConfigError,
                    "online.select: expected one that pairs steps, 'siblings', of a source 'tree', "
                    "got an objective on tokens");
}

/// The configs of examples/configs/online, made small.
TEST_CASE("every online config of the examples trains", "[run]") {
  const OnlineScene scene;
  std::int64_t configs = 0;
  for (const auto& entry :
       fs::directory_iterator(PREFOPT_TEST_DATA_DIR "/../../examples/configs/online")) {
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
      if (source.contains("n")) source["n"] = std::min(source["n"].get<int>(), 4);
      if (source["from"] == "environment") source = hash_game();  // its rewards are not all alike
      if (source["from"] == "tree") {
        source["tree"].merge_patch(
            {{"step_tokens", 1}, {"iterations", 6}, {"root_breadth", 4}, {"exploration", 300}});
      }
    }
    online["prompts"] = scene.file(has_data ? "rows.jsonl" : "prompts.jsonl");
    if (online.contains("select") && online["select"].contains("n")) {
      online["select"]["n"] = 1 + (online["select"]["n"] > 1);
    }
    if (online.contains("feedback")) {
      if (online["feedback"].contains("reward")) online["feedback"]["reward"] = random_rewards();
      if (online["feedback"].contains("judge")) online["feedback"]["judge"] = random_preferences();
    }
    online["rounds"]["rounds"] = std::min(online["rounds"]["rounds"].get<int>(), 2);
    online["rounds"]["prompts"] = 3;
    config["optimizer"]["learning_rate"] = 1e-3;
    const RunResult result = run_config(config);
    CHECK(result.steps >= 1);
    const auto rounds = read_lines(scene.file(name + "/rounds.jsonl"));
    REQUIRE_FALSE(rounds.empty());
    if (config["loss"]["type"] == "loop") {
      check_episodes_trained(scene, name, result.steps);
    } else {
      CHECK(rounds[0]["pairs/kept"] > 0);
    }
    ++configs;
  }
  CHECK(configs >= 20);
}

}  // namespace
}  // namespace prefopt
