// SPDX-License-Identifier: Apache-2.0
// Runs whose reward, value and reference models stay in a GGUF file's blocks, against the same runs
// on the file's numbers in float32.

#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "kernels/block_tensor.h"
#include "prefopt/data/controlled_task.h"
#include "prefopt/decoder/gguf_export.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/options.h"
#include "support/catch.h"
#include "support/checkpoint_parts.h"
#include "support/errors.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

using namespace testing_support;

DecoderOptions block_shape() {
  DecoderOptions shape = kTiny;
  shape.hidden_size = 32;
  shape.intermediate_size = 64;
  shape.initializer_range = 0.4;
  return shape;
}

class BlockScene : public Scene {
 public:
  BlockScene() {
    at::manual_seed(2);
    export_gguf(Decoder(block_shape()), path(), {.type = "Q8_0"});
    std::filesystem::create_directories(file("folder"));
    Decoder(block_shape()).save(file("folder"));
    ControlledTask task({.seed = 3});
    std::ofstream prompts(file("prompts.jsonl"));
    for (int i = 0; i < 4; ++i) prompts << Json{{"prompt", task.sample_prompt()}}.dump() << '\n';
  }

  std::string path() const { return file("model.gguf"); }

  RunOptions reward_options(const std::string& run) const {
    RunOptions options = evaluated(run, "reward_bt", /*steps=*/3, /*eval_every=*/3,
                                   /*save_every=*/1);
    options.model = {.path = path(), .tokenizer = "byte", .use_lora = true};
    options.model.lora.r = 2;
    options.checkpoint.keep_last = 0;
    return options;
  }

  Json online_config(const std::string& run, const std::string& base) const {
    return {{"output_dir", file(run)},
            {"loss", {{"type", "ppo"}}},
            {"model",
             {{"path", path()},
              {"tokenizer", "byte"},
              {"base", base},
              {"use_lora", true},
              {"lora", {{"r", 2}}}}},
            {"online",
             {{"prompts", file("prompts.jsonl")},
              {"sources", {{{"from", "policy"}, {"n", 2}}}},
              {"feedback", {{"reward", measures_text()}}},
              {"rounds", {{"rounds", 2}, {"steps", 1}}}}},
            {"optimizer", {{"learning_rate", 1e-2}}},
            {"sampling", {{"max_new_tokens", 6}}},
            {"machine", {{"threads", 1}}}};
  }
};

std::string adapter_of(const std::string& checkpoint) {
  return read_text(checkpoint + "/adapter_model.safetensors");
}

bool has_blocks(const Policy& model) {
  for (const auto& [name, value] : model.named_parameters()) {
    if (kernels::blocks_of(value) != nullptr) return true;
  }
  return false;
}

TEST_CASE("reward run: an adapter and a score head on a file's blocks", "[run]") {
  const BlockScene scene;
  RunOptions wide = scene.reward_options("wide");
  wide.model.base = "float32";
  const RunResult expected = run_training(wide);
  const RunOptions automatic = scene.reward_options("blocks");
  const RunResult result = run_training(automatic);
  CHECK(has_blocks(*result.policy));
  CHECK_FALSE(has_blocks(*expected.policy));
  CHECK(adapter_of(result.checkpoint) == adapter_of(expected.checkpoint));
  CHECK(untimed(automatic.output_dir) == untimed(wide.output_dir));
  // PEFT's form, with the score head among the modules that are saved whole.
  const auto config = Json::parse(read_text(result.checkpoint + "/adapter_config.json"));
  CHECK(config["task_type"] == "SEQ_CLS");
  CHECK(config["modules_to_save"] == Json{"score"});
  CHECK(config["base_model_name_or_path"] == scene.path());

  RunOptions again = scene.reward_options("again");
  const RunResult resumed = run_training(again, {}, scene.file("blocks/checkpoints/step-1"));
  CHECK(differing(parts_of(resumed.checkpoint), parts_of(result.checkpoint)) ==
        std::set<std::string>());
}

TEST_CASE("reward run: a float model that is quantized on load", "[run]") {
  const BlockScene scene;
  RunOptions options = scene.reward_options("run");
  options.model.path = scene.file("folder");
  options.model.quantize = "q8_0";
  const RunResult result = run_training(options);
  CHECK(has_blocks(*result.policy));
  CHECK(count_containing({read_text(scene.file("run/notes.jsonl"))},
                         "model.quantize: q8_0; what it costs is measured of language models "
                         "alone") == 1);
  options = scene.reward_options("refused");
  options.model.use_lora = false;
  options.model.lora = {};
  options.model.base = "quantized";
  CHECK_THROWS_TEXT(run_training(options), ConfigError,
                    "model.base: expected auto where all weights are trained, in model.dtype, got "
                    "'quantized'; model.use_lora trains an adapter on it");
}

TEST_CASE("value models on the policy's blocks", "[run]") {
  const BlockScene scene;
  RunOptions reward = scene.reward_options("reward");
  const std::string trained = run_training(reward).checkpoint;
  const std::vector<std::pair<std::string, Json>> cases{
      {"own", {{"value", {{"use_lora", true}}}}},
      {"head", {{"value", {{"body", "policy"}}}}},
      // A reward model's adapter, which the policy's base carries, scores the completions.
      {"feedback",
       {{"value", {{"use_lora", true}}},
        {"online", {{"feedback", {{"reward", nullptr}, {"reward_model", trained}}}}}}},
      {"reference", {{"value", {{"body", "policy"}}}, {"reference", {{"path", scene.path()}}}}}};
  for (const auto& [name, change] : cases) {
    CAPTURE(name);
    std::vector<std::string> adapters;
    std::vector<std::vector<Json>> lines;
    for (const std::string base : {"quantized", "float32"}) {
      Json config = scene.online_config(name + "-" + base, base);
      config.merge_patch(change);
      const RunResult result = run_config(config);
      CHECK(has_blocks(*result.policy) == (base == "quantized"));
      adapters.push_back(adapter_of(result.checkpoint));
      lines.push_back(untimed(scene.file(name + "-" + base)));
    }
    CHECK(adapters[0] == adapters[1]);
    CHECK(lines[0] == lines[1]);
  }
}

}  // namespace
}  // namespace prefopt
