// SPDX-License-Identifier: Apache-2.0
// Runs with losses on tokens and with rewards of steps: the configs of examples/configs/steps, what
// they leave behind, and configs that cannot be meant.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/run/run.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

/// Rows, prompts, and two models: one trained on the labels, and its reference.
class StepScene {
 public:
  StepScene() {
    std::ofstream labelled(file("labelled.jsonl"));
    std::ofstream pairs(file("pairs.jsonl"));
    std::ofstream demonstrations(file("demonstrations.jsonl"));
    std::ofstream prompts(file("prompts.jsonl"));
    for (int i = 0; i < 12; ++i) {
      const std::string prompt(1 + i % 3, static_cast<char>('a' + i));
      const std::string right = "b\n\nc\n\nd";
      const std::string wrong = i % 2 == 0 ? "b\n\ne" : "f";
      labelled << Json{{"prompt", prompt}, {"completion", right}, {"label", true}}.dump() << '\n'
               << Json{{"prompt", prompt}, {"completion", wrong}, {"label", false}}.dump() << '\n';
      pairs << Json{{"prompt", prompt}, {"chosen", right}, {"rejected", wrong}}.dump() << '\n';
      demonstrations << Json{{"prompt", prompt}, {"completion", right}}.dump() << '\n';
      prompts << Json{{"prompt", prompt}}.dump() << '\n';
    }
  }

  std::string file(const std::string& name) const { return folder_.file(name); }

  Json config(const std::string& run, const Json& loss) const {
    return {{"output_dir", file(run)},
            {"loss", loss},
            {"model",
             {{"decoder",
               {{"hidden_size", 16},
                {"intermediate_size", 24},
                {"num_hidden_layers", 1},
                {"num_attention_heads", 2},
                {"num_key_value_heads", 1},
                {"initializer_range", 0.4},
                {"max_position_embeddings", 64}}}}},
            {"data", {{"train", file("labelled.jsonl")}, {"eval_fraction", 0.25}}},
            {"batch", {{"rows", 6}, {"steps", 3}}},
            {"optimizer", {{"learning_rate", 1e-2}}},
            {"sampling", {{"max_new_tokens", 8}}},
            {"machine", {{"threads", 1}}},
            {"seed", 1}};
  }

  /// Trains the two models, once.
  void make_models() const {
    Json base = config("base", {{"type", "sft"}});
    base["data"]["train"] = file("demonstrations.jsonl");
    run_config(base);
    Json prm = config("prm", {{"type", "ce"}});
    prm["model"] = {{"path", base_model()}};
    run_config(prm);
  }
  std::string base_model() const { return file("base/checkpoints/last"); }
  std::string trained_model() const { return file("prm/checkpoints/last"); }

  /// The config of an example, made small.
  Json example(const std::string& name) const {
    Json config = Json::parse(
        read_text(PREFOPT_TEST_DATA_DIR "/../../examples/configs/steps/" + name + ".json"));
    const Json usual = this->config(name, {});
    for (const char* group : {"output_dir", "machine"}) config[group] = usual[group];
    const bool has_lora = config["model"].contains("use_lora");
    config["model"] = {{"path", base_model()}};
    if (has_lora) config["model"].update({{"use_lora", true}, {"lora", {{"r", 2}}}});
    if (config.contains("sampling")) config["sampling"] = usual["sampling"];
    if (config.contains("data")) {
      const std::string rows = config["data"]["train"];
      config["data"] = {{"train", file(rows)}, {"eval_fraction", 0.25}};
      config["batch"] = usual["batch"];
      config["optimizer"] = usual["optimizer"];
      if (config.contains("value") && config["value"].contains("pretrain_steps")) {
        config["value"]["pretrain_steps"] = 1;
      }
      return config;
    }
    Json& online = config["online"];
    online["prompts"] = file("prompts.jsonl");
    for (Json& source : online["sources"]) source["n"] = std::min(source["n"].get<int>(), 3);
    if (online["feedback"].contains("reward")) online["feedback"]["reward"] = measures_text();
    for (const char* group : {"process_reward", "implicit_reward"}) {
      Json& of = online.contains(group) ? online : online["feedback"];
      if (!of.contains(group)) continue;
      of[group]["model"] = trained_model();
      if (of[group].contains("reference")) of[group]["reference"] = base_model();
    }
    online["rounds"]["rounds"] = 2;
    online["rounds"]["prompts"] = 4;
    if (online["rounds"].contains("steps")) online["rounds"]["steps"] = 1;
    return config;
  }

 private:
  TempDir folder_;
};

TEST_CASE("every config of the examples on steps trains", "[run]") {
  const StepScene scene;
  scene.make_models();
  std::int64_t configs = 0;
  for (const auto& entry :
       fs::directory_iterator(PREFOPT_TEST_DATA_DIR "/../../examples/configs/steps")) {
    const std::string name = entry.path().stem().string();
    CAPTURE(name);
    const Json config = scene.example(name);
    const RunResult result = run_config(config);
    CHECK(result.steps >= 2);
    const bool has_values = config.contains("value");
    CHECK(fs::exists(scene.file(name + "/checkpoints/last/value")) == has_values);
    ++configs;
  }
  CHECK(configs == 9);
}

/// The mean loss of steps first + 1 to last, on the rows that they take.
double mean_loss(const std::vector<Json>& lines, std::int64_t first, std::int64_t last) {
  double sum = 0;
  for (const Json& line : lines) {
    const bool is_step = line.contains("learning_rate");
    if (is_step && line["step"] > first && line["step"] <= last) sum += line["loss"].get<double>();
  }
  return sum / static_cast<double>(last - first);
}

TEST_CASE("OREO and IQLearn lower their losses, and log what they are made of", "[run]") {
  const StepScene scene;
  struct Case {
    Json loss;
    std::vector<std::string> metrics;
  };
  const auto [loss, metrics] = GENERATE_COPY(
      Case{{{"type", "oreo"}}, {"loss/bellman", "loss/kl", "value/mean", "value/grad_norm"}},
      Case{{{"type", "oreo"}, {"level", "step"}, {"alpha", 0}}, {"loss/bellman", "value/mean"}},
      Case{{{"type", "oreo"}, {"level", "response"}}, {"loss/bellman", "loss/kl"}},
      Case{{{"type", "iqlearn"}}, {"loss/nll", "loss/rewards", "rewards/implicit"}},
      Case{{{"type", "iqlearn"}, {"own_samples", 0.2}}, {"loss/nll", "loss/rewards"}});
  CAPTURE(loss.dump());
  Json config = scene.config("run", loss);
  config["batch"]["steps"] = 30;
  if (loss["type"] == "oreo") config["value"] = {{"optimizer", {{"learning_rate", 1e-2}}}};
  if (loss["type"] == "iqlearn") config["data"]["train"] = scene.file("demonstrations.jsonl");
  run_config(config);
  const auto lines = read_lines(scene.file("run/metrics.jsonl"));
  CHECK(mean_loss(lines, 24, 30) < mean_loss(lines, 0, 6));
  for (const std::string& name : metrics) {
    CAPTURE(name);
    CHECK(lines[2].contains(name));
  }
}

TEST_CASE("runs of losses on tokens do not depend on the cut, and resume", "[run]") {
  const StepScene scene;
  const Json loss = GENERATE(Json{{"type", "oreo"}, {"level", "step"}},
                             Json{{"type", "iqlearn"}, {"own_samples", 0.2}});
  CAPTURE(loss.dump());
  const auto config_of = [&](const std::string& run) {
    Json config = scene.config(run, loss);
    if (loss["type"] == "iqlearn") config["data"]["train"] = scene.file("demonstrations.jsonl");
    config["checkpoint"] = {{"every", 1}, {"keep_last", 0}};
    return config;
  };
  const RunResult whole = run_config(config_of("whole"));
  Json cut = config_of("cut");
  cut["batch"]["micro_rows"] = 2;
  const RunResult parts = run_config(cut);
  CHECK(metric(parts.last_step, "loss") == Approx(metric(whole.last_step, "loss")).epsilon(1e-4));
  Json again = config_of("again");
  const RunResult resumed = run_config(again, scene.file("whole/checkpoints/step-1"));
  CHECK(metric(resumed.last_step, "loss") == metric(whole.last_step, "loss"));
}

TEST_CASE("process rewards change what PPO learns", "[run]") {
  const StepScene scene;
  scene.make_models();
  Json with = scene.example("process_reward");
  Json without = with;
  without["online"].erase("process_reward");
  without["output_dir"] = scene.file("without");
  run_config(with);
  run_config(without);
  const auto round = [&](const std::string& run) {
    return read_lines(scene.file(run + "/rounds.jsonl")).front();
  };
  CHECK(round("process_reward").contains("reward/process"));
  CHECK_FALSE(round("without").contains("reward/process"));
  CHECK(round("process_reward")["reward"] == round("without")["reward"]);
  CHECK(round("process_reward")["value/error"] != round("without")["value/error"]);
}

TEST_CASE("rewards of steps that cannot be meant are refused", "[run]") {
  const StepScene scene;
  scene.make_models();
  const auto refused = [&](Json config, const Json& change, const std::string& text) {
    CAPTURE(change.dump());
    config.merge_patch(change);
    CHECK_THROWS_TEXT(run_config(config), ConfigError, text);
  };
  const Json process = scene.example("process_reward");
  refused(process,
          {{"loss", {{"type", "grpo"}}},
           {"value", nullptr},
           {"online", {{"sources", {{{"from", "policy"}, {"n", 2}}}}}}},
          "online.process_reward: expected an objective whose advantages take rewards of tokens, "
          "gae or to_go, got 'grpo'");
  refused(process, {{"online", {{"process_reward", {{"reference", ""}}}}}},
          "online.process_reward.reference: expected the reference that '" + scene.trained_model() +
              "' was trained with, as rewards are of both, got none");
  refused(process, {{"online", {{"process_reward", {{"model", ""}}}}}},
          "online.process_reward.model: expected a model that gives rewards, got a reference "
          "alone");
  const Json rto = scene.example("rto");
  refused(rto, {{"online", {{"process_reward", nullptr}}}},
          "online.process_reward.model: expected the model that DPO trained for 'rto', got none");
  refused(rto, {{"online", {{"process_reward", {{"clip", 1}}}}}},
          "online.process_reward: expected a model alone for 'rto', whose dpo_reward says the rest "
          "with the run's reference, got further options");
  const Json best = scene.example("process_best_of_n");
  refused(best, {{"online", {{"process_reward", {{"beta", 1}}}}}},
          "online.process_reward: expected its defaults for 'sft', which is no objective on tokens "
          "of rollouts, got others");
  refused(best, {{"online", {{"feedback", {{"implicit_reward", {{"reference", ""}}}}}}}},
          "feedback.implicit_reward.reference: expected the reference that '" +
              scene.trained_model() + "' was trained with, as rewards are of both, got none");
  refused(best, {{"online", {{"feedback", {{"workers", 2}}}}}},
          "feedback: expected no workers with this implicit_reward, got one; it would do nothing");
}

TEST_CASE("losses on tokens refuse what they do not use", "[run]") {
  const StepScene scene;
  const auto refused = [&](const Json& loss, const Json& change, const std::string& text) {
    CAPTURE(loss.dump(), change.dump());
    Json config = scene.config("refused", loss);
    config.merge_patch(change);
    CHECK_THROWS_TEXT(run_config(config), ConfigError, text);
    CHECK_FALSE(fs::exists(scene.file("refused")));
  };
  refused({{"type", "iqlearn"}}, {{"value", {{"use_lora", true}}}},
          "value: expected its defaults for 'iqlearn', which has no values, got others");
  refused({{"type", "oreo"}},
          {{"data", {{"train", ""}, {"eval_fraction", 0}}},
           {"online", {{"prompts", scene.file("prompts.jsonl")}}}},
          "online.prompts: expected none for 'oreo', which learns from given rows, got '" +
              scene.file("prompts.jsonl") + "'");
  refused({{"type", "iqlearn"}, {"own_samples", 0.1}},
          {{"data", {{"train", scene.file("demonstrations.jsonl")}}}, {"sampling", {{"top_k", 3}}}},
          "iqlearn: expected samples of the policy itself (temperature 1, top_k 0, top_p 1), got "
          "temperature 1, top_k 3, top_p 1; its own samples are of the policy");
  refused({{"type", "iqlear"}}, Json::object(),
          "loss: expected a loss or an objective, got 'iqlear'; did you mean 'iqlearn'?");
}

}  // namespace
}  // namespace prefopt
