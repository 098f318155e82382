// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "kernels/cpu/tiles.h"
#include "prefopt/data/controlled_task.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/run/run.h"
#include "prefopt/version.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

TEST_CASE("a run leaves the folder that it promises", "[run]") {
  const Scene scene;
  auto options = scene.options("run", "dpo");
  options.evaluate.every = 2;
  std::vector<std::int64_t> steps_seen, evaluations_seen;
  RunEvents events;
  events.step = [&](std::int64_t step, std::int64_t total, const Metrics& metrics) {
    CHECK(total == 3);
    CHECK(std::isfinite(metric(metrics, "grad_norm")));
    steps_seen.push_back(step);
  };
  events.evaluation = [&](std::int64_t step, const Metrics& metrics) {
    CHECK(std::isfinite(metric(metrics, "rewards/margins")));
    evaluations_seen.push_back(step);
  };
  const auto result = run_training(options, events);
  CHECK(steps_seen == std::vector<std::int64_t>{1, 2, 3});
  CHECK(evaluations_seen == std::vector<std::int64_t>{0, 2, 3});

  const std::string run = scene.file("run");
  const auto config_text = read_text(run + "/config.json");
  const auto config = Json::parse(config_text);
  CHECK(config["loss"] == Json::parse(make_loss(R"({"type": "dpo"})").config()));
  CHECK(config["sampling"]["eos_id"] == 257);
  CHECK(config["model"]["decoder"]["bos_token_id"] == 256);
  CHECK(config["model"]["decoder"]["eos_token_id"] == 257);
  CHECK(config["model"]["decoder"]["pad_token_id"] == 258);
  const auto read_back = options_from_json<RunOptions>(config_text, "config.json");
  CHECK(Json::parse(options_to_json(read_back)) == config);

  const auto environment = Json::parse(read_text(run + "/env.json"));
  CHECK(environment["prefopt"] == PREFOPT_VERSION_STRING);
  CHECK(environment["threads"] == at::get_num_threads());
  for (const auto* key : {"libtorch", "cpu_capability", "compiler"}) {
    CHECK_FALSE(environment[key].get<std::string>().empty());
  }

  const auto lines = read_lines(run + "/metrics.jsonl");
  REQUIRE(lines.size() == 6);  // evaluations at 0, 2, 3 and three steps
  const std::vector<int> steps = {0, 1, 2, 2, 3, 3};
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const bool evaluation = i == 0 || i == 3 || i == 5;
    CHECK(lines[i]["step"] == steps[i]);
    CHECK(lines[i]["epoch"] == steps[i] * 4 / 18.0);  // 24 rows, a quarter held out
    CHECK(lines[i].contains(evaluation ? "eval_loss" : "loss"));
    CHECK(lines[i].contains("tokens_per_second") == !evaluation);
    CHECK(lines[i]["seconds"].get<double>() >= 0);
  }
  CHECK(lines[0]["eval_loss"].get<double>() == Approx(std::log(2.0)).epsilon(1e-12));
  CHECK(lines[5]["eval_loss"] == metric(result.last_evaluation, "loss"));
  CHECK(lines[4]["loss"] == metric(result.last_step, "loss"));
  CHECK(lines[0]["eval_loss"] == metric(result.first_evaluation, "loss"));

  CHECK(result.checkpoint == run + "/checkpoints/step-3");
  CHECK(fs::read_symlink(run + "/checkpoints/last") == "step-3");
  const auto saved = Decoder::load(run + "/checkpoints/last");
  const auto expected = result.policy->named_parameters();
  const auto loaded = saved->named_parameters();
  REQUIRE(loaded.size() == expected.size());
  for (std::size_t i = 0; i < loaded.size(); ++i) {
    CHECK(torch::equal(loaded[i].value.detach(), expected[i].value.detach()));
  }
  CHECK(result.seconds > 0);
}

TEST_CASE("equal seeds give equal metrics, bit for bit", "[run]") {
  const Scene scene;
  const auto type = GENERATE(as<std::string>{}, "dpo", "hypo", "sft");
  auto options = scene.options("first", type);
  run_training(options);
  options.output_dir = scene.file("second");
  run_training(options);
  options.output_dir = scene.file("other seed");
  options.seed = 2;
  run_training(options);
  CHECK(untimed(scene.file("first")) == untimed(scene.file("second")));
  CHECK(untimed(scene.file("first")) != untimed(scene.file("other seed")));
}

TEST_CASE("SFT lowers the loss on rows that it did not see", "[run]") {
  const Scene scene;
  auto options = scene.options("run", "sft");
  options.batch.steps = 30;
  options.batch.rows = 6;
  options.evaluate.log_every = 8;
  const auto result = run_training(options);
  const double first = metric(result.first_evaluation, "loss");
  CHECK(first == Approx(std::log(259.0)).epsilon(0.02));  // fresh weights know nothing
  CHECK(metric(result.last_evaluation, "loss") < 0.8 * first);

  std::vector<int> logged;
  for (const auto& line : read_lines(scene.file("run") + "/metrics.jsonl")) {
    if (line.contains("loss")) logged.push_back(line["step"]);
  }
  CHECK(logged == std::vector<int>{8, 16, 24, 30});
}

TEST_CASE("each epoch shows every row once, and a step is never short", "[run]") {
  const Scene scene;
  auto options = scene.options("run", "sft");
  options.data.eval_fraction = 0;
  options.batch.shuffle = GENERATE(false, true);
  options.batch.steps = 0;
  options.batch.epochs = 2;
  options.batch.rows = 16;  // 24 rows: the second of three steps spans two epochs
  std::vector<double> tokens;
  RunEvents events;
  events.step = [&](std::int64_t, std::int64_t total, const Metrics& metrics) {
    CHECK(total == 3);
    tokens.push_back(metric(metrics, "num_tokens"));
  };
  const auto result = run_training(options, events);
  CHECK(result.first_evaluation.empty());
  CHECK(result.last_evaluation.empty());
  double epoch_tokens = 0;
  for (const auto& row : read_lines(scene.file("sft.jsonl"))) {
    constexpr double kBeginAndEnd = 2;
    epoch_tokens += static_cast<double>(row["prompt"].get<std::string>().size() +
                                        row["completion"].get<std::string>().size()) +
                    kBeginAndEnd;
  }
  REQUIRE(tokens.size() == 3);
  CHECK(tokens[2] == 2 * epoch_tokens);
  CHECK(read_lines(scene.file("run") + "/metrics.jsonl").back()["epoch"] == 2);
}

TEST_CASE("a run starts from a checkpoint and compares with another", "[run]") {
  const Scene scene;
  auto sft = scene.options("sft", "sft");
  sft.batch.steps = 20;
  const auto trained = run_training(sft);

  auto dpo = scene.options("dpo", "dpo");
  dpo.model.path = trained.checkpoint;
  const auto from_checkpoint = run_training(dpo);
  CHECK(metric(from_checkpoint.first_evaluation, "loss") == Approx(std::log(2.0)).epsilon(1e-12));

  // Fresh weights against a trained reference: the chosen start below it.
  auto below = scene.options("below", "dpo");
  below.reference.path = trained.checkpoint;
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  const auto displaced = run_training(below, events);
  CHECK(metric(displaced.first_evaluation, "logps/chosen") <
        metric(displaced.first_evaluation, "logps/ref_chosen"));
  CHECK(count_containing(notes,
                         "chosen log-probs fell below the reference's (likelihood "
                         "displacement): ") == 1);
  CHECK(count_containing(notes, "at step 0") == 1);

  auto mismatch = scene.options("mismatch", "dpo");
  mismatch.reference.path = trained.checkpoint;
  mismatch.model.decoder.vocab_size = 300;
  CHECK_THROWS_TEXT(run_training(mismatch), ConfigError,
                    "reference.path: expected a model with the policy's vocabulary of 300 tokens, "
                    "got " +
                        trained.checkpoint + " with 259");
}

TEST_CASE("a cached reference gives what a frozen one gives", "[run]") {
  const Scene scene;
  const auto frozen = scene.options("frozen", "dpo");
  auto cached = scene.options("cached", "dpo");
  cached.reference.kind = ReferenceKind::kCached;
  const auto expected = run_training(frozen);
  const auto result = run_training(cached);
  CHECK(metric(result.last_evaluation, "loss") ==
        Approx(metric(expected.last_evaluation, "loss")).epsilon(1e-5));
  CHECK_FALSE(fs::is_empty(scene.file("cached") + "/reference-cache"));
}

TEST_CASE("a reference moves with the policy", "[run]") {
  const Scene scene;
  const auto losses = [&](const std::string& name, const MovingReferenceOptions& update,
                          bool lora = false) {
    auto options = scene.options(name, "dpo");
    options.reference.moving = true;
    options.reference.update = update;
    options.model.use_lora = lora;
    std::vector<double> values;
    RunEvents events;
    events.step = [&](std::int64_t, std::int64_t, const Metrics& metrics) {
      values.push_back(metric(metrics, "loss"));
    };
    run_training(options, events);
    REQUIRE(values.size() == 3);
    return values;
  };
  const double log_2 = std::log(2.0);
  // At each step the reference is the policy.
  CHECK(losses("hard", {.rule = MovingRule::kHard, .update_steps = 1}) ==
        std::vector<double>(3, log_2));
  for (const double loss : losses("lora", {.rule = MovingRule::kHard, .update_steps = 1}, true)) {
    CHECK(loss == Approx(log_2).epsilon(1e-5));
  }
  const auto rare = losses("rare", {.alpha = 0.5, .update_steps = 100});
  CHECK(rare.back() == metric(run_training(scene.options("fixed", "dpo")).last_step, "loss"));
  CHECK(std::abs(rare.back() - log_2) > 1e-4);
  const auto soft = losses("soft", {.alpha = 0.5, .update_steps = 1});
  CHECK(soft.front() == log_2);
  CHECK(soft.back() != rare.back());
  CHECK(losses("bema", {.rule = MovingRule::kBema, .update_steps = 1}).back() != rare.back());
}

TEST_CASE("a moving reference starts as another model, in its own dtype", "[run]") {
  const Scene scene;
  auto other = scene.options("other", "sft");
  other.seed = 2;
  const std::string start = run_training(other).checkpoint;
  const auto evaluations = [&](const std::string& name, const std::string& dtype) {
    auto options = scene.options(name, "dpo");
    options.reference.path = start;
    options.reference.dtype = dtype;
    options.reference.moving = true;
    options.reference.update = {.rule = MovingRule::kHard, .update_steps = 1};
    const auto result = run_training(options);
    return std::pair(metric(result.first_evaluation, "loss"),
                     metric(result.last_evaluation, "loss"));
  };
  const double log_2 = std::log(2.0);
  const auto same = evaluations("same", "");
  CHECK(std::abs(same.first - log_2) > 1e-4);
  CHECK(same.second == Approx(log_2).epsilon(1e-12));
  const auto narrow = evaluations("narrow", "bfloat16");
  CHECK(std::abs(narrow.second - log_2) > 1e-9);
  CHECK(std::abs(narrow.second - log_2) < 0.01);
}

TEST_CASE("rows that are left out are noted before training", "[run]") {
  const Scene scene;
  write_text(scene.file("pairs.jsonl"),
             read_text(scene.file("pairs.jsonl")) +
                 "{\"prompt\": \"abc>\", \"chosen\": \"aaa\"}\n"
                 "{\"prompt\": \"abc>\", \"chosen\": \"aaa\", \"rejected\": \"aaa\"}\n");
  std::vector<std::string> notes;
  std::size_t notes_before_training = 0;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  events.evaluation = [&](std::int64_t step, const Metrics&) {
    if (step == 0) notes_before_training = notes.size();
  };
  run_training(scene.options("run", "dpo"), events);
  notes.resize(notes_before_training);
  CHECK(notes.at(0) == "data.train: 24 of 26 rows of " + scene.file("pairs.jsonl") + " are used");
  CHECK(count_containing(notes, "25") >= 1);
  CHECK(count_containing(notes, "26") >= 2);
  CHECK(count_containing(notes, "data.train: the last 6 rows are held out, 18 train") == 1);
  CHECK(count_containing(notes, "model: ") == 1);
}

TEST_CASE("a held-out file is used instead of a share of the rows", "[run]") {
  const Scene scene;
  ControlledTask({.seed = 9}).write_preferences(scene.file("eval.jsonl"), 5);
  auto options = scene.options("run", "dpo");
  options.data.eval = scene.file("eval.jsonl");
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  run_training(options, events);
  CHECK(count_containing(notes, "data.eval: 5 of 5 rows of ") == 1);
  CHECK(count_containing(notes, "held out") == 0);
  CHECK(read_lines(scene.file("run") + "/metrics.jsonl").back()["epoch"] == 12 / 24.0);
}

TEST_CASE("a run asks for its precision of products, or says that it changes nothing", "[run]") {
  const Scene scene;
  const bool has_tiles = kernels::cpu::has_tiles();
  const auto trained = [&](const std::string& run, MatmulPrecision precision, bool is_noted) {
    auto options = scene.options(run, "dpo");
    options.model.decoder.hidden_size = 64;
    options.machine.matmul_precision = precision;
    std::vector<std::string> notes;
    RunEvents events;
    events.note = [&](const std::string& line) { notes.push_back(line); };
    run_training(options, events);
    CHECK(count_containing(notes,
                           "machine.matmul_precision: 'medium' leaves a decoder's products "
                           "in float32, as this processor multiplies no tiles of bfloat16 "
                           "numbers") == (is_noted ? 1 : 0));
    return read_lines(scene.file(run) + "/metrics.jsonl").back()["eval_loss"].get<double>();
  };
  const double exact = trained("highest", MatmulPrecision::kHighest, false);
  CHECK(at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::HIGHEST);
  const double rounded = trained("medium", MatmulPrecision::kMedium, !has_tiles);
  CHECK(at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::MEDIUM);
  if (has_tiles) CHECK(rounded != exact);
  CHECK(rounded == Approx(exact).margin(0.05));
  CHECK(trained("again", MatmulPrecision::kHighest, false) == exact);
}

TEST_CASE("a run that cannot be meant is refused and leaves no folder", "[run]") {
  const Scene scene;
  const auto refuse = [&](RunOptions options, auto expected, const std::string& text) {
    CHECK_THROWS_TEXT(run_training(options), decltype(expected), text);
    CHECK_FALSE(fs::exists(scene.file("run")));
  };
  const auto good = scene.options("run", "dpo");

  auto options = good;
  options.batch.rows = 0;
  refuse(options, ConfigError(""), "run.batch: expected rows in [1, 1000000], got 0");

  options = good;
  options.model.decoder.vocab_size = 258;
  refuse(options, ConfigError(""),
         "model.decoder.vocab_size: expected at least the 259 tokens of the tokenizer 'byte', got "
         "258");

  options = good;
  options.reference.moving = true;
  options.reference.update.alpha = 0;
  refuse(options, ConfigError(""), "run.reference.update: expected alpha in (0, 1], got 0");
  options.reference.update.alpha = 1;
  options.reference.kind = ReferenceKind::kCached;
  refuse(options, ConfigError(""),
         "reference: expected kind 'frozen' where moving is true, got 'cached'; a cache holds "
         "log-probs of one model");

  options = good;
  options.output_dir = "";
  CHECK_THROWS_TEXT(run_training(options), ConfigError,
                    "output_dir: expected the name of a folder, got ''");

  options = good;
  options.data.train = "";
  refuse(options, ConfigError(""), "data.train: expected a file, got ''");

  write_text(scene.file("ids.jsonl"),
             "{\"prompt_ids\": [1], \"chosen_ids\": [2, 259], \"rejected_ids\": [3]}\n");
  options = good;
  options.data.train = scene.file("ids.jsonl");
  options.data.eval_fraction = 0;
  refuse(options, DataError(""),
         "data.train: expected token ids from 0 to 258, got 259 in the chosen completion of pair "
         "0; were the ids made for another model?");
}

TEST_CASE("a folder with a run in it is left alone", "[run]") {
  const Scene scene;
  const auto options = scene.options("run", "sft");
  fs::create_directories(scene.file("run"));  // an empty one is fine
  run_training(options);
  const auto before = read_text(scene.file("run") + "/metrics.jsonl");
  CHECK_THROWS_TEXT(run_training(options), ConfigError,
                    "output_dir: expected an empty or new folder, got " + scene.file("run") +
                        " with a config.json in it; choose another name, or resume that run");
  CHECK(read_text(scene.file("run") + "/metrics.jsonl") == before);
}

TEST_CASE("two runs do not write to one folder", "[run]") {
  const Scene scene;
  const std::string run = scene.file("run");
  const auto options = scene.options("run", "sft");
  const std::string refusal = "output_dir: expected a folder that no other run writes to, got " +
                              run + ", where process " + std::to_string(getpid()) +
                              " is at work; wait for it, or choose another name";
  int attempts = 0;
  RunEvents events;
  events.step = [&](std::int64_t, std::int64_t, const Metrics&) {
    const auto metrics = read_text(run + "/metrics.jsonl");
    CHECK_THROWS_TEXT(run_training(options, {}, "auto"), ConfigError, refusal);
    CHECK(read_text(run + "/metrics.jsonl") == metrics);
    ++attempts;
  };
  const RunResult result = run_training(options, events);
  CHECK(attempts == 3);
  // The lock went with the run; a file that a killed process left says nothing.
  write_text(run + "/run.lock", "1");
  CHECK(run_training(options, {}, "auto").steps == result.steps);

  // One that came while this one was loading: seen before anything is overwritten.
  for (const std::string resume : {"", "auto"}) {
    const std::string name = "late" + resume;
    RunEvents second;
    second.note = [&](const std::string& line) {
      if (line.starts_with("model: ")) run_training(scene.options(name, "sft"));
    };
    CHECK_THROWS_TEXT(run_training(scene.options(name, "sft"), second, resume), ConfigError,
                      "output_dir: expected an empty or new folder, got " + scene.file(name) +
                          " with a config.json in it; choose another name, or resume that run");
  }
}

TEST_CASE("the share of rows that the budgets shortened is a metric", "[run]") {
  const Scene scene;
  std::string rows;
  for (int i = 0; i < 8; ++i) {
    const std::string prompt(i % 4 == 0 ? 30 : 3, static_cast<char>('a' + i));
    rows += R"({"prompt": ")" + prompt + R"(", "chosen": "x", "rejected": "y"})" + "\n";
  }
  write_text(scene.file("pairs.jsonl"), rows);
  auto options = scene.options("run", "dpo");
  options.data.max_prompt_length = 16;
  options.data.eval_fraction = 0.5;  // rows 4 to 7, of which 4 is cut
  options.batch.steps = 2;
  options.batch.rows = 2;
  options.batch.shuffle = false;
  run_training(options);
  const auto lines = read_lines(scene.file("run") + "/metrics.jsonl");
  REQUIRE(lines.size() == 4);
  CHECK(lines[0]["eval_truncated"] == 0.25);
  CHECK(lines[1]["truncated"] == 0.5);
  CHECK(lines[2]["truncated"] == 0);
}

TEST_CASE("a run config takes the names of other trainers and refuses typos", "[run]") {
  const auto options = options_from_json<RunOptions>(
      R"({"batch": {"max_steps": 7, "num_train_epochs": 2}, "evaluate": {"logging_steps": 5},
          "model": {"model_name_or_path": "m"}, "reference": {"kind": "cached"}})",
      "run.json");
  const auto moving = options_from_json<RunOptions>(
      R"({"reference": {"sync_ref_model": true, "update": {"ref_model_sync_steps": 3}}})",
      "run.json");
  CHECK(moving.reference.moving);
  CHECK(moving.reference.update.update_steps == 3);
  CHECK(options.batch.steps == 7);
  CHECK(options.batch.epochs == 2);
  CHECK(options.evaluate.log_every == 5);
  CHECK(options.model.path == "m");
  CHECK(options.reference.kind == ReferenceKind::kCached);
  CHECK_THROWS_TEXT(
      options_from_json<RunOptions>(R"({"optimizer": {"learning_rat": 1}})", "run.json"),
      ConfigError,
      "run.json.optimizer: expected a known option, got 'learning_rat'; did you mean "
      "'learning_rate'?");
}

TEST_CASE("a run with an adapter trains it alone and leaves a PEFT folder", "[run]") {
  const Scene scene;
  auto base = scene.options("base", "sft");
  base.batch.steps = 1;
  const std::string model = run_training(base).checkpoint;

  auto options = scene.options("lora", "dpo");
  options.model.path = model;
  options.model.use_lora = true;
  options.model.lora = {.r = 2, .target_modules = {"q_proj", "up_proj"}};
  std::vector<std::string> notes;
  double first_loss = 0;
  RunEvents events;
  events.note = [&](const std::string& note) { notes.push_back(note); };
  events.step = [&](std::int64_t step, std::int64_t, const Metrics& metrics) {
    if (step == 1) first_loss = metric(metrics, "loss");
  };
  const RunResult result = run_training(options, events);
  CHECK(first_loss == std::log(2.0));
  CHECK(metric(result.last_step, "loss") != std::log(2.0));
  CHECK(count_containing(notes, "of them trained") == 1);
  const auto policy = std::dynamic_pointer_cast<Decoder>(result.policy);
  REQUIRE(policy != nullptr);
  CHECK(content_hash(*policy->without_adapter()) == content_hash(*Decoder::load(model)));

  CHECK_FALSE(fs::exists(result.checkpoint + "/model.safetensors"));
  const auto again = Decoder::load(model);
  again->load_adapter(result.checkpoint);
  CHECK(content_hash(*again) == content_hash(*result.policy));

  // On from there: the reference is then the model with the adapter as it was.
  auto more = scene.options("more", "dpo");
  more.model.path = model;
  more.model.adapter = result.checkpoint;
  more.batch.steps = 1;
  CHECK(metric(run_training(more).last_step, "loss") == std::log(2.0));

  // Or a reference with another adapter on the same weights.
  auto other = scene.options("other", "dpo");
  other.model.path = model;
  other.model.adapter = result.checkpoint;
  other.reference.adapter = result.checkpoint;
  other.batch.steps = 1;
  CHECK(metric(run_training(other).last_step, "loss") == std::log(2.0));
  for (const bool moving : {false, true}) {
    other.output_dir = scene.file(moving ? "fresh-moving" : "fresh");
    other.model.adapter = "";
    other.model.use_lora = true;
    other.reference.moving = moving;
    CHECK(metric(run_training(other).last_step, "loss") != std::log(2.0));
  }
  other.output_dir = scene.file("whole");
  other.model.use_lora = false;
  other.reference.moving = false;
  CHECK(metric(run_training(other).last_step, "loss") != std::log(2.0));
  other.output_dir = scene.file("none");
  other.model.path = "";
  CHECK_THROWS_TEXT(run_training(other), ConfigError,
                    "reference.adapter: expected a model of a file under it, model.path or "
                    "reference.path, got neither with '" +
                        result.checkpoint + "'");
}

TEST_CASE("checkpointing follows the budget and changes no number", "[run]") {
  const Scene scene;
  const auto run = [&](const std::string& name, CheckpointingChoice choice, std::int64_t hidden) {
    auto options = scene.options(name, "dpo");
    options.model.decoder.hidden_size = hidden;
    options.model.decoder.intermediate_size = 256 * hidden;
    options.machine.checkpointing = choice;
    options.machine.activation_budget_mib = 1;
    run_training(options);
    const auto config = Json::parse(read_text(options.output_dir + "/config.json"));
    return std::pair(config["machine"]["checkpointing"].get<std::string>(),
                     untimed(options.output_dir));
  };
  const auto none = run("none", CheckpointingChoice::kNone, 16);
  CHECK(none.first == "none");
  // 4 pairs of some 20 tokens keep more than a MiB of gate and up, and less without.
  const auto automatic = run("auto", CheckpointingChoice::kAutomatic, 16);
  CHECK(automatic.first == "selective");
  CHECK(automatic.second == none.second);
  const auto full = run("full", CheckpointingChoice::kFull, 16);
  CHECK(full.first == "full");
  CHECK(full.second == none.second);
}

}  // namespace
}  // namespace prefopt
