// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>

#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/run/run.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/reward_models.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

using namespace testing_support;

TEST_CASE("reward run: from fresh weights, and on from its checkpoint", "[run]") {
  const Scene scene;
  auto options = scene.options("run", "reward_bt");
  options.data.eval = options.data.train;  // of 24 rows, training shows in these alone
  options.data.eval_fraction = 0;
  options.batch.steps = 30;
  options.machine.threads = 1;
  const RunResult result = run_training(options);
  CHECK(metric(result.last_evaluation, "loss") < metric(result.first_evaluation, "loss"));
  CHECK(metric(result.last_evaluation, "rewards/accuracies") > 0.5);
  const auto lines = read_lines(scene.file("run/metrics.jsonl"));
  CHECK(lines.back().contains("eval_rewards/margins"));
  CHECK_FALSE(lines.back().contains("eval_logps/chosen"));
  CHECK_FALSE(read_text(scene.file("run/report.html")).empty());
  const std::string saved = scene.file("run/checkpoints/last");
  CHECK(is_reward_model(saved));
  CHECK(content_hash(*RewardModel::load(saved)) == content_hash(*result.policy));

  // A second run starts where the first one ended, with its score head.
  std::vector<std::string> notes;
  const RunEvents events{.note = [&](const std::string& line) { notes.push_back(line); },
                         .step = {},
                         .evaluation = {},
                         .should_stop = {}};
  options.output_dir = scene.file("second");
  options.model = {.path = saved};
  options.batch.steps = 1;
  const RunResult second = run_training(options, events);
  CHECK(metric(second.first_evaluation, "loss") ==
        Approx(metric(result.last_evaluation, "loss")).epsilon(1e-6));
  CHECK(count_containing(notes, "a fresh score head") == 0);
}

TEST_CASE("reward run: a language model gets a score head", "[run]") {
  const Scene scene;
  auto sft = scene.options("sft", "sft");
  const RunResult base = run_training(sft);
  auto options = scene.options("run", "reward_bt");
  options.model = {.path = base.checkpoint};
  options.model.use_lora = true;
  options.model.lora.r = 2;
  std::vector<std::string> notes;
  const RunEvents events{.note = [&](const std::string& line) { notes.push_back(line); },
                         .step = {},
                         .evaluation = {},
                         .should_stop = {}};
  const RunResult result = run_training(options, events);
  CHECK(count_containing(notes, "a fresh score head") == 1);
  CHECK(is_reward_model(result.checkpoint));
  CHECK(RewardModel::load(result.checkpoint)->body().adapter().has_value());
}

TEST_CASE("reward run: what it refuses", "[run]") {
  const Scene scene;
  auto options = scene.options("run", "reward_bt");
  options.evaluate.sample_prompts = 2;
  CHECK_THROWS_TEXT(run_training(options), ConfigError,
                    "evaluate.sample_prompts: expected 0 for a reward model, which writes nothing, "
                    "got 2");
  options = scene.options("run", "dpo");
  options.model = {.path = kRewardModels + "llama", .tokenizer = "byte"};
  check_throws_part<CheckpointError>([&] { run_training(options); },
                                     "expected a language model, got a reward model");
}

}  // namespace
}  // namespace prefopt
