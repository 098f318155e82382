// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <regex>
#include <string>
#include <vector>

#include "prefopt/decoder/gguf_export.h"
#include "prefopt/error.h"
#include "run/plan/memory_budget.h"
#include "run/plan/run_plan.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

using namespace testing_support;
using detail::MemoryPlan;
using detail::PlanAssumptions;
using detail::RunRows;

RunOptions budget_options() {
  RunOptions options;
  options.model.decoder = {.vocab_size = 4000,
                           .hidden_size = 256,
                           .intermediate_size = 512,
                           .num_hidden_layers = 4,
                           .num_attention_heads = 4,
                           .num_key_value_heads = 2};
  options.batch.rows = 8;
  return options;
}

RunRows budget_rows() {
  return {.train = detail::equal_rows(8, 100, 50, 50), .eval = {}, .train_cut = {}, .eval_cut = {}};
}

RunOptions fitted(RunOptions options, std::int64_t mib) {
  options.machine.memory_budget_mib = mib;
  fit_memory(options, budget_rows(), {}, [](const std::string&) {});
  return options;
}

/// Returns the number after "expected at least" of the refusal of far too small a budget.
std::int64_t least_budget(const std::function<void()>& run) {
  try {
    run();
  } catch (const ConfigError& error) {
    std::smatch match;
    const std::string text = error.what();
    REQUIRE(std::regex_search(text, match,
                              std::regex("^machine.memory_budget_mib: expected at "
                                         "least ([0-9]+), the least plan of this")));
    return std::stoll(match[1]);
  }
  FAIL("expected a refusal");
  return 0;
}

}  // namespace

TEST_CASE("memory budget: what is chosen fits, and less is given up where there is more", "[run]") {
  const std::int64_t least = least_budget([] { fitted(budget_options(), 1); });
  std::int64_t tokens = 0;
  Checkpointing last = Checkpointing::kFull;
  for (std::int64_t budget = least; budget < least + 160; budget += 5) {
    CAPTURE(budget, least);
    const RunOptions options = fitted(budget_options(), budget);
    const detail::RunPlan plan = plan_run(options, budget_rows(), {}, 1);
    CHECK(plan.memory.total() <= budget << 20);
    for (const detail::ActivationLevel& level : plan.activations) {
      if (level.is_chosen) last = level.checkpointing;
    }
    tokens = options.batch.micro_tokens;
    if (budget == least) {
      CHECK(options.machine.checkpointing == CheckpointingChoice::kFull);
      CHECK(tokens == 200);  // a row
    }
  }
  CHECK(last == Checkpointing::kNone);
  CHECK(tokens == 0);  // the whole step at once
  CHECK(fitted(budget_options(), 0).machine.checkpointing == CheckpointingChoice::kAutomatic);
}

TEST_CASE("memory budget: what the options say stays", "[run]") {
  RunOptions options = budget_options();
  options.machine.checkpointing = CheckpointingChoice::kSelective;
  options.machine.head_budget_mib = 8;
  options.batch.micro_rows = 2;
  const std::int64_t least = least_budget([&] { fitted(options, 1); });
  for (const std::int64_t budget : {least, least + 1000}) {
    const RunOptions chosen = fitted(options, budget);
    CHECK(chosen.machine.checkpointing == CheckpointingChoice::kSelective);
    CHECK(chosen.machine.head_budget_mib <= 8);
    CHECK(chosen.batch.micro_rows == 2);
  }
  options.machine.checkpointing = CheckpointingChoice::kNone;
  CHECK(least_budget([&] { fitted(options, 1); }) > least);
}

TEST_CASE("memory budget: a run within it has the same losses and gradients", "[run]") {
  const Scene scene;
  const auto options_of = [&](const std::string& name, std::int64_t budget) {
    RunOptions options = scene.options(name, "dpo");
    options.model.decoder.intermediate_size = 4096;
    options.model.decoder.num_hidden_layers = 3;
    options.model.dtype = "float64";
    options.machine.threads = 1;
    options.machine.memory_budget_mib = budget;
    return options;
  };
  const std::int64_t least = least_budget([&] { run_training(options_of("none", 1)); });
  const RunOptions free = options_of("free", 0), tight = options_of("tight", least);
  run_training(free);
  run_training(tight);
  const Json config = Json::parse(read_text(tight.output_dir + "/config.json"));
  CHECK(config["machine"]["checkpointing"] != "none");
  CHECK(config["batch"]["micro_tokens"] > 0);
  const auto expected = untimed(free.output_dir), got = untimed(tight.output_dir);
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    for (const char* name : {"loss", "grad_norm", "logps/chosen", "eval_loss"}) {
      if (!expected[i].contains(name)) continue;
      CAPTURE(i, name);
      CHECK(got[i][name].get<double>() ==
            Approx(expected[i][name].get<double>()).epsilon(1e-9).margin(1e-12));
    }
  }
}

TEST_CASE("memory budget: what cannot fit is refused before a weight is read", "[run]") {
  RunOptions options = budget_options();
  const PlanAssumptions machine;
  // The least plan by itself: a row at a time, everything computed again, the smallest tiles.
  RunOptions smallest = options;
  smallest.machine.checkpointing = CheckpointingChoice::kFull;
  smallest.machine.head_budget_mib = 1;
  smallest.batch.micro_tokens = 200;
  const MemoryPlan least = plan_run(smallest, budget_rows(), machine, 1).memory;
  const std::int64_t mib = (least.total() + (1 << 20) - 1) >> 20;
  CHECK(least_budget([&] { fitted(options, 1); }) == mib);
  CHECK_NOTHROW(fitted(options, mib));
  std::vector<detail::MemoryPart> parts = least.parts;
  std::stable_sort(parts.begin(), parts.end(),
                   [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  std::string texts;
  for (const detail::MemoryPart& part : parts) {
    if (part.bytes < 1 << 20) continue;
    texts += fmt::format("{}{} {} MiB", texts.empty() ? "" : ", ", part.name,
                         (part.bytes + (1 << 20) - 1) >> 20);
  }
  CHECK(texts.starts_with("program 150 MiB, optimizer 26 MiB, weights 13 MiB, gradients 13 MiB"));
  CHECK_THROWS_TEXT(
      fitted(options, mib - 1), ConfigError,
      fmt::format("machine.memory_budget_mib: expected at least {}, the least plan of this run "
                  "({}), got {}; shorter rows, an adapter and a model in blocks take less",
                  mib, texts, mib - 1));
  options.loss = R"({"type": "kto"})";
  CHECK_THROWS_TEXT(
      fitted(options, 1000), ConfigError,
      "machine.memory_budget_mib: loss: expected one that scores the completions of its rows, "
      "which a plan counts, got 'kto', which scores completions of other rows too");
  const Scene scene;
  RunOptions rewards = scene.options("rewards", "reward_bt");
  rewards.machine.memory_budget_mib = 500;
  CHECK_THROWS_TEXT(run_training(rewards), ConfigError,
                    "machine.memory_budget_mib: expected 0 for a reward model, whose memory is not "
                    "planned, got 500");
}

TEST_CASE("run: activations in a file change no bit", "[run]") {
  const Scene scene;
  const auto run = [&](const std::string& name, const std::string& folder) {
    RunOptions options = scene.options(name, "dpo");
    options.machine.threads = 1;
    options.machine.checkpointing = CheckpointingChoice::kFull;
    options.machine.activation_folder = folder;
    run_training(options);
    return untimed(options.output_dir);
  };
  CHECK(run("memory", "") == run("file", scene.file("")));
  RunOptions options = scene.options("none", "dpo");
  options.machine.activation_folder = scene.file("");
  CHECK_THROWS_TEXT(run_training(options), ConfigError,
                    "machine.activation_folder: expected machine.checkpointing full, which leaves "
                    "the inputs of layers to keep, got '" +
                        scene.file("") + "'");
}

TEST_CASE("run: a model that is quantized on load", "[run]") {
  const Scene scene;
  DecoderOptions shape = kTiny;
  shape.hidden_size = 32;
  shape.intermediate_size = 64;
  at::manual_seed(2);
  Decoder(shape).save(scene.file("model"));
  const auto options_of = [&](const std::string& name) {
    RunOptions options = scene.options(name, "dpo");
    options.model.decoder = {};
    options.model.path = scene.file("model");
    options.model.tokenizer = "byte";
    options.model.use_lora = true;
    options.model.quantize = "q8_0";
    return options;
  };
  std::vector<std::string> notes;
  const auto trained = [&](RunOptions options) {
    notes.clear();
    RunEvents events;
    events.note = [&](const std::string& line) { notes.push_back(line); };
    run_training(options, events);
  };
  trained(options_of("q8"));
  REQUIRE(count_containing(notes,
                           "model.quantize: q8_0 brings the loss of held-out chosen "
                           "completions from ") == 1);
  RunOptions options = options_of("none-held-out");
  options.data.eval_fraction = 0;
  trained(options);
  CHECK(count_containing(notes,
                         "model.quantize: q8_0; what it costs is not known without held-out "
                         "rows (data.eval or data.eval_fraction)") == 1);

  const auto refused = [&](auto change, const std::string& text) {
    RunOptions changed = options_of("refused");
    change(changed);
    CHECK_THROWS_TEXT(run_training(changed), ConfigError, text);
  };
  refused([](RunOptions& o) { o.model.quantize = "q3"; },
          "model.quantize: expected q8_0, q4_k or nothing, got 'q3'");
  refused([](RunOptions& o) { o.model.use_lora = false; },
          "model.quantize: expected an adapter on weights in blocks, which are not trained "
          "(model.use_lora), got 'q8_0' without one");
  refused([](RunOptions& o) { o.model.base = "bfloat16"; },
          "model.quantize: expected model.base auto next to it, got 'bfloat16'");
  refused([](RunOptions& o) { o.model.path = ""; },
          "model.quantize: expected a model of a file, got 'q8_0' of a fresh one");
  refused([](RunOptions& o) { o.model.dtype = "fp16"; },
          "model.dtype: expected float32, float64, bfloat16, float16, keep, got 'fp16'");
  refused([](RunOptions& o) { o.reference.dtype = "fp16"; },
          "reference.dtype: expected float32, float64, bfloat16, float16, keep, got 'fp16'");
}

}  // namespace prefopt
