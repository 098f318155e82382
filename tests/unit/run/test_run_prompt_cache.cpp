// SPDX-License-Identifier: Apache-2.0
// Runs that keep prompts from one round to the next, against the same runs without.

#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "prefopt/data/controlled_task.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/prompt_cache.h"
#include "prefopt/error.h"
#include "prefopt/options.h"
#include "prefopt/run/run.h"
#include "run/plan/run_plan.h"
#include "support/catch.h"
#include "support/checkpoint_parts.h"
#include "support/errors.h"
#include "support/pretend_device.h"
#include "support/run_scene.h"
#include "support/thread_ranks.h"

namespace prefopt {
namespace {

using namespace testing_support;

/// Prompts, a model in a folder, and configs of two rounds over the same prompts.
class PromptScene : public Scene {
 public:
  PromptScene() {
    ControlledTask task({.seed = 3});
    std::ofstream prompts(file("prompts.jsonl"));
    for (int i = 0; i < 4; ++i) {
      prompts << Json{{"prompt", std::to_string(i) + task.sample_prompt()}}.dump() << '\n';
    }
    at::manual_seed(7);
    DecoderOptions shape = kTiny;
    shape.initializer_range = 0.4;  // so that a change of weights changes what is drawn
    std::filesystem::create_directories(file("model"));
    Decoder(shape).save(file("model"));
  }

  Json config(const std::string& run, const Json& sources, std::int64_t mib) const {
    Json config = {{"output_dir", file(run)},
                   {"loss", {{"type", "dpo"}}},
                   {"model", {{"path", file("model")}, {"tokenizer", "byte"}}},
                   {"online",
                    {{"prompts", file("prompts.jsonl")},
                     {"sources", sources},
                     {"feedback", {{"reward", measures_text()}}},
                     {"select", {{"type", "best_worst"}}},
                     {"rounds", {{"rounds", 2}}}}},
                   {"batch", {{"rows", 2}}},
                   {"optimizer", {{"learning_rate", 1e-2}}},
                   {"sampling", {{"max_new_tokens", 6}}},
                   {"checkpoint", {{"every", 1}, {"keep_last", 0}}},
                   {"machine", {{"threads", 1}}},
                   {"distributed", {{"timeout_seconds", 20}}}};
    if (mib > 0) config["machine"]["prompt_cache_mib"] = mib;
    return config;
  }
};

/// Hits and misses of a run, by its lines.
struct Use {
  std::int64_t hits = 0, misses = 0;
  bool operator==(const Use&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Use& use) {
  return out << use.hits << " hits, " << use.misses << " misses";
}

/// Takes the counts out of the lines of a run's metrics.
Use take_use(std::vector<Json>& lines) {
  Use use;
  for (Json& line : lines) {
    if (!line.contains("prompt_cache/hits")) continue;
    use.hits += line["prompt_cache/hits"].get<std::int64_t>();
    use.misses += line["prompt_cache/misses"].get<std::int64_t>();
    CHECK(line["prompt_cache/mib"] >= 0);
    for (const char* name : {"hits", "misses", "mib"}) {
      line.erase(std::string("prompt_cache/") + name);
    }
  }
  return use;
}

const std::set<std::string> kNone;

}  // namespace

TEST_CASE("a run that keeps prompts ends in the same bits", "[run]") {
  struct Case {
    std::string name;
    Json sources;
    Json change;
    Use use;
  };
  const Json reference = {{"from", "reference"}, {"n", 2}};
  const Json policy = {{"from", "policy"}, {"n", 2}};
  const auto named = [](const char* from) { return Json{{"from", from}, {"n", 1}}; };
  const Json adapter = {{"model", {{"use_lora", true}}}};
  // Four prompts a round. Steps change the policy, and the sources that follow it, in between.
  const std::vector<Case> cases{
      {"reference", {reference}, Json::object(), {4, 4}},
      {"adapter", {reference}, adapter, {4, 4}},
      {"policy", {policy}, Json::object(), {0, 8}},
      {"sources",
       {policy, {{"from", "policy"}, {"name", "cold"}, {"temperature", 0.1}}},
       adapter,
       {8, 8}},
      {"last", {named("policy"), named("last")}, Json::object(), {0, 16}},
      {"ema", {named("policy"), named("ema")}, adapter, {0, 16}},
      {"mixture", {{{"from", "mixture"}, {"n", 2}}}, adapter, {4, 12}}};
  const PromptScene scene;
  for (const Case& one : cases) {
    CAPTURE(one.name);
    std::vector<std::vector<Json>> lines;
    std::vector<Parts> parts;
    for (const std::int64_t mib : {0, 4}) {
      const std::string run = one.name + std::to_string(mib);
      Json config = scene.config(run, one.sources, mib);
      config.merge_patch(one.change);
      const RunResult result = run_config(config);
      parts.push_back(parts_of(result.checkpoint));
      lines.push_back(untimed(scene.file(run)));
    }
    CHECK(take_use(lines[0]) == Use{});
    CHECK(take_use(lines[1]) == one.use);
    CHECK(lines[0] == lines[1]);
    CHECK(differing(parts[0], parts[1]) == kNone);
    CHECK(read_text(scene.file(one.name + "0/rounds.jsonl")) ==
          read_text(scene.file(one.name + "4/rounds.jsonl")));
  }
  CHECK(prompt_cache_counts().bytes == 0);
}

TEST_CASE("a run is resumed with another prompt cache, or none", "[run]") {
  const PromptScene scene;
  const Json sources = {{{"from", "reference"}, {"n", 2}}};
  const Parts expected = parts_of(run_config(scene.config("run", sources, 4)).checkpoint);
  for (const std::int64_t mib : {0, 1}) {
    Json config = scene.config("again" + std::to_string(mib), sources, mib);
    const RunResult again = run_config(config, scene.file("run/checkpoints/step-1"));
    CHECK(differing(parts_of(again.checkpoint), expected) == kNone);
  }
}

TEST_CASE("ranks that keep prompts end in the same bits", "[run]") {
  const PromptScene scene;
  const Json sources = {{{"from", "policy"}, {"n", 2}}, {{"from", "reference"}, {"n", 1}}};
  std::vector<Parts> parts;
  for (const std::int64_t mib : {0, 4}) {
    Json config = scene.config("run" + std::to_string(mib), sources, mib);
    config["distributed"]["sharding"] = "optimizer";
    const auto options = options_from_json<RunOptions>(config.dump(), "run");
    std::string checkpoint;
    ThreadRanks(2, options.distributed).run([&](const std::shared_ptr<Ranks>& ranks) {
      const RunResult result = run_training(options, {}, {}, ranks);
      if (ranks->rank() == 0) checkpoint = result.checkpoint;
    });
    parts.push_back(parts_of(checkpoint));
  }
  CHECK(differing(parts[0], parts[1]) == kNone);
  CHECK(prompt_cache_counts().bytes == 0);
}

TEST_CASE("a run says what its prompt cache was good for", "[run]") {
  const PromptScene scene;
  const auto last_note = [&](const std::string& run) {
    return read_lines(scene.file(run + "/notes.jsonl")).back()["note"].get<std::string>();
  };
  run_config(scene.config("hits", {{{"from", "reference"}, {"n", 2}}}, 4));
  CHECK(last_note("hits") ==
        "machine.prompt_cache_mib: 4 of 8 prompts were kept from an earlier call");
  run_config(scene.config("none", {{{"from", "policy"}, {"n", 2}}}, 4));
  CHECK(last_note("none") ==
        "machine.prompt_cache_mib: 0 of 8 prompts were kept from an earlier call; 0 would do the "
        "same");
}

TEST_CASE("a prompt cache that would keep nothing is refused", "[run][device]") {
  const PromptScene scene;
  RunOptions options = scene.options("refused", "dpo");
  options.machine.prompt_cache_mib = 64;
  const std::string idle =
      "machine.prompt_cache_mib: expected 0 where nothing is drawn to train on, by online.prompts "
      "or 'dpo', got 64";
  CHECK_THROWS_TEXT(run_training(options), ConfigError, idle);
  CHECK_THROWS_TEXT(detail::RunModels::of(options, {}), ConfigError, idle);
  options.online.prompts = scene.file("prompts.jsonl");
  options.online.sources = R"([{"from": "program", "n": 2, "command": ["true"]}])";
  CHECK_THROWS_TEXT(run_training(options), ConfigError, idle);
  options.distributed.sharding = Sharding::kWeights;
  CHECK_THROWS_TEXT(run_training(options), ConfigError,
                    "machine.prompt_cache_mib: expected 0 with slices of weights, which are whole "
                    "for one call, got 64");
  options.model.device = pretend_device().str();
  CHECK_THROWS_TEXT(run_training(options), ConfigError,
                    "machine.prompt_cache_mib: expected the cpu as model.device, got 'pretend:0'");
  CHECK_FALSE(std::filesystem::exists(scene.file("refused")));
}

}  // namespace prefopt
