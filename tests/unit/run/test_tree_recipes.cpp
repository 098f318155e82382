// SPDX-License-Identifier: Apache-2.0
// The configs of examples/configs/recipes, made small.

#include <filesystem>
#include <string>

#include "prefopt/options.h"
#include "prefopt/run/run.h"
#include "support/catch.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using testing_support::Json;

TEST_CASE("every config of the recipes trains", "[run]") {
  const testing_support::Scene scene;
  int configs = 0;
  for (const auto& entry :
       fs::directory_iterator(PREFOPT_TEST_DATA_DIR "/../../examples/configs/recipes")) {
    const std::string name = entry.path().stem().string();
    CAPTURE(name);
    Json config = Json::parse(testing_support::read_text(entry.path().string()));
    config["output_dir"] = scene.file(name);
    config["model"] = {{"decoder",
                        {{"hidden_size", 16},
                         {"intermediate_size", 24},
                         {"num_hidden_layers", 1},
                         {"num_attention_heads", 2},
                         {"num_key_value_heads", 1},
                         {"max_position_embeddings", 64}}}};
    config["data"]["train"] = scene.file("sft.jsonl");
    config["sampling"] = {{"max_new_tokens", 4}};
    CHECK(run_training(options_from_json<RunOptions>(config.dump(), "run")).steps >= 2);
    ++configs;
  }
  CHECK(configs >= 2);
}

}  // namespace
}  // namespace prefopt
