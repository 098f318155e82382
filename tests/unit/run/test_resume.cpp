// SPDX-License-Identifier: Apache-2.0
#include <ATen/CPUGeneratorImpl.h>

#include <filesystem>
#include <functional>
#include <iostream>
#include <new>

#include "prefopt/error.h"
#include "prefopt/losses/pair/dpo.h"
#include "prefopt/losses/registry.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/run/run.h"
#include "prefopt/train/trainer.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/checkpoint_parts.h"
#include "support/errors.h"
#include "support/no_sync.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

struct WatchedOptions {
  void fields(FieldVisitor&) {}
};

/// The DPO loss, in front of which a test may put something.
struct WatchedLoss {
  static inline std::function<void()> before;

  explicit WatchedLoss(const WatchedOptions&) {}

  LossOutput forward(const PairLogps& logps) const {
    if (before) before();
    return DpoLoss().forward(logps);
  }
  LossRequirements requirements() const { return DpoLoss().requirements(); }
  static LossInfo info() {
    LossInfo info = DpoLoss::info();
    info.name = "watched_dpo";
    info.aliases = {};
    info.presets = {};
    return info;
  }
  WatchedOptions options() const { return {}; }
};

void register_watched_loss() {
  static const bool once = (register_loss<WatchedLoss>(), true);
  static_cast<void>(once);
}

constexpr std::int64_t kSteps = 40;

/// 18 rows in steps of 4, cut in two: step 9 ends an epoch, others span two.
RunOptions long_run(const Scene& scene, const std::string& run, const std::string& type) {
  auto options = scene.options(run, type);
  options.batch.steps = kSteps;
  options.batch.micro_rows = 2;
  options.evaluate.every = 4;
  options.checkpoint.keep_last = 0;
  options.checkpoint.keep_best = 2;
  options.machine.threads = 1;
  return options;
}

struct Case {
  const char* name;
  std::function<void(RunOptions&)> change;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> kCases = {
      {"plain", [](RunOptions&) {}},
      {"running mean",
       [](RunOptions& o) { o.loss = R"({"type": "bco_pair", "running_delta": true})"; }},
      {"running mean over the whole step",
       [](RunOptions& o) { o.loss = R"({"type": "beta_dpo"})"; }},
      {"fresh samples", [](RunOptions& o) { o.loss = R"({"type": "hypo"})"; }},
      {"reference that moves softly",
       [](RunOptions& o) {
         o.reference.moving = true;
         o.reference.update = {.alpha = 0.5, .update_steps = 3};
       }},
      {"reference by BEMA, in bfloat16",
       [](RunOptions& o) {
         o.reference.moving = true;
         o.reference.dtype = "bfloat16";
         o.reference.update = {.rule = MovingRule::kBema, .update_steps = 2, .update_after = 8};
       }},
      {"cached reference",
       [](RunOptions& o) {
         o.reference.kind = ReferenceKind::kCached;
         o.reference.cache_dir = o.output_dir + "-cache";
       }},
      {"adapter", [](RunOptions& o) { o.model.use_lora = true; }},
      {"adapter of every kind on bfloat16 weights, reference that moves",
       [](RunOptions& o) {
         o.model.dtype = "bfloat16";
         o.model.use_lora = true;
         o.model.lora = {.r = 2,
                         .target_modules = {"q_proj", "up_proj", "lm_head"},
                         .rank_pattern = R"({"up_proj": 3})",
                         .alpha_pattern = R"({"q_proj": 5})",
                         .use_dora = true,
                         .modules_to_save = {"embed_tokens", "norm"}};
         o.reference.moving = true;
         o.reference.update = {.alpha = 0.5, .update_steps = 3};
       }},
      {"reward model",
       [](RunOptions& o) {
         o.loss = R"({"type": "reward_bt", "center_rewards_coefficient": 0.01})";
       }},
      {"adapter of a reward model",
       [](RunOptions& o) {
         o.loss = R"({"type": "reward_bt"})";
         o.model.use_lora = true;
       }},
      {"narrow optimizer state",
       [](RunOptions& o) { o.optimizer.state_dtype = StateDtype::kBFloat16; }},
      {"bfloat16 weights, cosine schedule, weight decay",
       [](RunOptions& o) {
         o.model.dtype = "bfloat16";
         o.optimizer.schedule = Schedule::kCosine;
         o.optimizer.warmup_steps = 5;
         o.optimizer.weight_decay = 0.1;
       }},
      {"float16 weights and narrow state, both rounded at random",
       [](RunOptions& o) {
         o.model.dtype = "float16";
         o.optimizer.masters = Masters::kStochastic;
         o.optimizer.state_dtype = StateDtype::kBFloat16;
       }},
      {"Adafactor on bfloat16 weights, rounded at random",
       [](RunOptions& o) {
         o.model.dtype = "bfloat16";
         o.optimizer.masters = Masters::kStochastic;
         o.optimizer.type = OptimizerType::kAdafactor;
       }},
      {"RMSprop with momentum and narrow state",
       [](RunOptions& o) {
         o.optimizer.type = OptimizerType::kRmsprop;
         o.optimizer.rmsprop_momentum = 0.5;
         o.optimizer.state_dtype = StateDtype::kBFloat16;
       }},
  };
  return kCases;
}

/// Something else that uses LibTorch's default generator.
RunEvents drawing() {
  RunEvents events;
  events.step = [](std::int64_t, std::int64_t, const Metrics&) { at::rand({3}); };
  return events;
}

/// Runs each case straight, and once more from its checkpoint after each of `stops`.
void check_resumes(std::int64_t steps, const std::vector<std::int64_t>& stops) {
  const NoSync no_sync;
  const Scene scene;
  std::int64_t points = 0;
  std::size_t parts = 0;
  for (const Case& c : cases()) {
    INFO(c.name);
    const auto name = [&](const std::string& suffix) { return std::string(c.name) + suffix; };
    auto options = long_run(scene, name(""), "dpo");
    c.change(options);
    options.batch.steps = steps;
    options.checkpoint.every = 1;
    const auto straight = run_training(options, drawing());
    const Parts expected = parts_of(straight.checkpoint);
    parts += expected.size();
    for (const std::int64_t stop : stops) {
      INFO("after step " << stop);
      auto rest = options;
      rest.output_dir = scene.file(name(" from " + std::to_string(stop)));
      rest.checkpoint.every = 0;
      const auto from = scene.file(name("/checkpoints/step-" + std::to_string(stop)));
      const auto result = run_training(rest, drawing(), from);
      CHECK(result.steps == steps);
      CHECK(differing(parts_of(result.checkpoint), expected).empty());
      CHECK(result.last_step == straight.last_step);
      CHECK(result.first_evaluation == straight.first_evaluation);
      CHECK(result.last_evaluation == straight.last_evaluation);
      ++points;
    }
  }
  std::cout << "counted: " << points << " resume points, " << parts
            << " parts of the final checkpoints compared at each of " << stops.size() << '\n';
}

// The first step, the end of an epoch, the last step but one.
TEST_CASE("a run that continues ends to the last bit as one without a break", "[run]") {
  check_resumes(12, {1, 9, 11});
}

TEST_CASE("a longer run that continues ends to the last bit as one without a break",
          "[run][.long]") {
  check_resumes(kSteps, {1, 7, 9, 39});
}

TEST_CASE("a run that was stopped, or died inside of a step, continues in its folder", "[run]") {
  register_watched_loss();
  const Scene scene;
  const auto options = long_run(scene, "straight", "watched_dpo");
  const auto straight = run_training(options);
  auto broken = options;
  broken.output_dir = scene.file("broken");
  broken.checkpoint.every = 5;

  RunEvents events;
  std::int64_t steps = 0;
  events.step = [&](std::int64_t step, std::int64_t, const Metrics&) { steps = step; };
  events.should_stop = [&] { return steps == 7; };
  const auto stopped = run_training(broken, events, "auto");  // nothing there yet: it starts
  CHECK(stopped.stopped);
  CHECK(stopped.steps == 7);
  CHECK(stopped.checkpoint == scene.file("broken/checkpoints/step-7"));
  CHECK(fs::read_symlink(scene.file("broken/checkpoints/last")) == "step-7");

  // The second micro-batch of a step fails after the first has left its gradient.
  struct Killed {};
  std::vector<std::string> notes;
  int calls = 0;
  events = {};
  events.note = [&](const std::string& line) { notes.push_back(line); };
  events.step = [&](std::int64_t step, std::int64_t, const Metrics&) {
    steps = step;
    calls = 0;
  };
  WatchedLoss::before = [&] {
    if (steps == 21 && ++calls == 2) throw Killed();
  };
  CHECK_THROWS_AS(run_training(broken, events, "auto"), Killed);
  WatchedLoss::before = nullptr;
  CHECK(count_containing(notes, "resume: continues after step 7 of 40, from ") == 1);
  CHECK(fs::read_symlink(scene.file("broken/checkpoints/last")) == "step-20");

  notes.clear();
  const auto result = run_training(broken, events, "auto");
  CHECK_FALSE(result.stopped);
  CHECK(count_containing(notes, "metrics.jsonl: 1 lines after step 20 are cut off") == 1);
  CHECK(differing(parts_of(result.checkpoint), parts_of(straight.checkpoint)).empty());
  CHECK(untimed(scene.file("broken")) == untimed(scene.file("straight")));

  // Finished steps stay finished.
  const auto again = run_training(broken, {}, scene.file("broken"));
  CHECK(again.checkpoint == result.checkpoint);
  CHECK(again.last_evaluation == straight.last_evaluation);
  CHECK(untimed(scene.file("broken")) == untimed(scene.file("straight")));
}

TEST_CASE("without any one part of its state a run ends otherwise", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = long_run(scene, "straight", "dpo");
  options.loss = R"({"type": "bco_pair", "running_delta": true})";
  options.optimizer.state_dtype = StateDtype::kBFloat16;
  options.reference.moving = true;
  options.reference.update = {.alpha = 0.5, .update_steps = 2};
  options.reference.dtype = "bfloat16";
  options.batch.steps = 9;
  options.evaluate.every = 2;
  options.evaluate.patience = 100;
  options.checkpoint.keep_best = 100;
  options.checkpoint.every = 1;
  const auto straight = run_training(options, drawing());
  const Parts expected = parts_of(straight.checkpoint);
  const std::string saved = scene.file("straight/checkpoints/step-7");
  const auto start = read_safetensors(scene.file("straight/checkpoints/step-1/model.safetensors"));

  int copies = 0;
  // Whether the run that resumes from the changed checkpoint is refused or ends otherwise.
  const auto is_noticed = [&](const std::function<void(Tensors&, Json&)>& change) {
    const auto copy = scene.file("changed-" + std::to_string(++copies));
    copy_changed(saved, copy, change);
    auto rest = options;
    rest.output_dir = copy + "-run";
    rest.checkpoint.every = 0;
    try {
      const auto result = run_training(rest, drawing(), copy);
      return !differing(parts_of(result.checkpoint), expected).empty();
    } catch (const CheckpointError&) {
      return true;
    }
  };
  REQUIRE_FALSE(is_noticed([](Tensors&, Json&) {}));

  std::set<std::string> kinds;
  copy_changed(saved, scene.file("listed"), [&](Tensors& tensors, Json&) {
    for (const auto& [name, value] : tensors) kinds.insert(name);
  });
  std::int64_t controls = 0;
  for (const std::string& name : kinds) {
    INFO(name);
    // As a run has it that has not taken this part from the checkpoint.
    CHECK(is_noticed([&](Tensors& tensors, Json&) {
            for (auto& [found, value] : tensors) {
              if (found != name) continue;
              at::Tensor fresh = at::zeros_like(value);
              for (const auto& [weight, first] : start.tensors) {
                if (weight == name) fresh = first;
              }
              if (name == "generator.cpu") {
                fresh = at::detail::createCPUGenerator(99).get_state();
              }
              value = fresh;
            }
          }) == (name != "trainer.skipped_in_a_row"));  // has its own test
    // And a checkpoint that does not have it at all is refused.
    CHECK(is_noticed([&](Tensors& tensors, Json&) {
      std::erase_if(tensors, [&](const auto& item) { return item.first == name; });
    }));
    controls += 2;
  }
  for (const auto& [key, fresh] : std::vector<std::pair<std::string, Json>>{
           {"position", 0},
           {"next_rows", Json::array({0, 1, 2, 3})},
           {"step", 0},
           {"selection", {{"best", Json::array()}, {"evaluations_since_best", 0}}},
           {"first_evaluation", Json::object()}}) {
    INFO(key);
    CHECK(
        is_noticed([&, key = key, fresh = fresh](Tensors&, Json& values) { values[key] = fresh; }));
    CHECK(is_noticed([&](Tensors&, Json& values) { values.erase(key); }));
    controls += 2;
  }
  std::cout << "counted: " << controls << " negative controls over " << kinds.size() + 5
            << " parts of a checkpoint\n";
}

TEST_CASE("skipped updates are counted over a break", "[run]") {
  const auto make = [](const std::shared_ptr<BigramPolicy>& policy) {
    return std::make_unique<Trainer>(
        policy, nullptr, make_loss(R"({"type": "sft"})"),
        TrainerOptions{.optimizer = {.schedule = Schedule::kConstant}});
  };
  auto policy = std::make_shared<BigramPolicy>(3);
  const auto first = make(policy);
  policy->poisoned = true;
  first->step(pairs());
  first->step(pairs());
  const auto second = make(policy);
  second->load_state(first->state());
  CHECK_THROWS_AS(second->step(pairs()), NonFiniteError);

  auto saved = first->state();
  for (auto& [name, value] : saved) {
    if (name == "trainer.skipped_in_a_row") value = at::zeros_like(value);
  }
  const auto third = make(policy);
  third->load_state(saved);
  CHECK(metric(third->step(pairs()), "skipped") == 1);
}

TEST_CASE("a trainer's state fits its own kind only", "[run]") {
  const auto make = [](const std::string& loss) {
    auto policy = std::make_shared<BigramPolicy>(3);
    return std::make_unique<Trainer>(
        policy, make_frozen_reference(policy->frozen_copy()), make_loss(loss),
        TrainerOptions{.optimizer = {.schedule = Schedule::kConstant}});
  };
  const auto trainer = make(R"({"type": "dpo"})");
  trainer->step(pairs());
  auto saved = trainer->state();
  const auto other = make(R"({"type": "dpo"})");
  saved.emplace_back("optimizer.mean.other", at::zeros({1}));
  CHECK_THROWS_TEXT(other->load_state(saved), CheckpointError,
                    "trainer: expected tensors that this run has, got 'optimizer.mean.other'; was "
                    "the state saved with another model, loss or optimizer?");
  saved.pop_back();
  for (auto& [name, value] : saved) {
    if (name == "optimizer.square.bias") value = at::zeros({2}, at::kDouble);
  }
  CHECK_THROWS_TEXT(other->load_state(saved), CheckpointError,
                    "trainer: tensor 'optimizer.square.bias': expected [5] of Double, got [2] of "
                    "Double");
  std::erase_if(saved, [](const auto& item) { return item.first == "loss.mean"; });
  CHECK_THROWS_TEXT(other->load_state(saved), CheckpointError,
                    "trainer: expected tensor 'loss.mean', got none of that name");
  CHECK(other->steps_done() == 0);  // nothing was taken
}

TEST_CASE("a run with other options or contents is not gone on with", "[run]") {
  const Scene scene;
  auto options = scene.options("run", "dpo");
  options.machine.threads = 1;
  run_training(options);
  const std::string saved = scene.file("run/checkpoints/step-3");
  const auto refusal = [&](const std::function<void(RunOptions&)>& change) {
    auto changed = options;
    change(changed);
    try {
      run_training(changed, {}, "auto");
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string("taken");
  };
  const auto refused = [&](const std::string& what) {
    return "resume: expected the options and contents that " + saved + " was saved with, got " +
           what + "; undo that, or start a new run";
  };
  CHECK(refusal([](RunOptions& o) {
          o.optimizer.learning_rate = 0.5;
          o.loss = R"({"type": "dpo", "beta": 0.2})";
        }) == refused("loss.beta: 0.1 -> 0.2, optimizer.learning_rate: 0.01 -> 0.5"));
  CHECK(refusal([](RunOptions& o) { o.batch.steps = 4; }) == refused("batch.steps: 3 -> 4"));
  CHECK(refusal([](RunOptions& o) {
          o.seed = 2;
        }).find("seed: 1 -> 2, other weights of the model") != std::string::npos);
  CHECK(refusal([](RunOptions& o) {
          o.model.decoder.num_hidden_layers = 2;
        }).find("model.decoder.num_hidden_layers: 1 -> 2, other weights of the model") !=
        std::string::npos);
  CHECK(refusal([](RunOptions& o) {
          o.data.eval_fraction = 0.5;
        }).find("data.eval_fraction: 0.25 -> 0.5, other held-out rows (data.train \"") !=
        std::string::npos);
  write_text(scene.file("pairs.jsonl"), read_text(scene.file("pairs.jsonl")) +
                                            R"({"prompt": "a>", "chosen": "b", "rejected": "c"})");
  const std::string data = "data.train \"" + scene.file("pairs.jsonl") + "\"";
  CHECK(refusal([](RunOptions&) {}).find("got other held-out rows (" + data + ")") !=
        std::string::npos);
  const std::string moved = scene.file("moved.jsonl");
  fs::copy(scene.file("pairs.jsonl"), moved);
  CHECK(refusal([&](RunOptions& o) {
          o.data.train = moved;
        }).find("other held-out rows (" + data + " -> \"" + moved + "\")") != std::string::npos);
}

TEST_CASE("what changes no result may change when a run continues", "[run]") {
  const Scene scene;
  auto options = scene.options("run", "dpo");
  options.optimizer.schedule = Schedule::kConstant;
  options.machine.threads = 1;
  run_training(options);
  options.batch.steps = 5;
  options.evaluate.log_every = 2;
  options.checkpoint.every = 1;
  options.batch.micro_rows = 2;
  fs::copy(scene.file("pairs.jsonl"), scene.file("moved.jsonl"));
  options.data.train = scene.file("moved.jsonl");
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  CHECK(run_training(options, events, "auto").steps == 5);
  CHECK(count_containing(notes,
                         "resume: batch.micro_rows: 0 -> 2; results may differ in "
                         "their last digits") == 1);
  CHECK(Json::parse(read_text(scene.file("run/config.json")))["batch"]["steps"] == 5);
}

TEST_CASE("metrics after the checkpoint and broken lines are cut off", "[run]") {
  const Scene scene;
  auto options = scene.options("run", "dpo");
  options.optimizer.schedule = Schedule::kConstant;
  run_training(options);
  const auto before = untimed(scene.file("run"));
  const std::string path = scene.file("run/metrics.jsonl");
  write_text(path,
             read_text(path) + "{\"step\": 4, \"loss\": 1}\n{\"step\": 5}\n{\"step\": 6, \"lo");
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  run_training(options, events, "auto");
  CHECK(count_containing(notes, "metrics.jsonl: 2 lines after step 3 are cut off") == 1);
  CHECK(count_containing(notes, "metrics.jsonl: 1 broken lines are cut off") == 1);
  CHECK(untimed(scene.file("run")) == before);

  // Time continues from the value in the lines.
  write_text(path, read_text(path) + "{\"step\": 3, \"seconds\": 1000}\n");
  options.batch.steps = 4;
  run_training(options, {}, "auto");
  CHECK(read_lines(path).back()["seconds"].get<double>() >= 1000);

  // In another folder too.
  options.batch.steps = 5;
  options.output_dir = scene.file("copy");
  run_training(options, {}, scene.file("run"));
  CHECK(read_lines(scene.file("copy/metrics.jsonl")).back()["seconds"].get<double>() >= 1000);

  // Of a checkpoint alone nobody knows.
  fs::copy(fs::canonical(scene.file("run/checkpoints/last")), scene.file("step-4"),
           fs::copy_options::recursive);
  options.output_dir = scene.file("alone");
  run_training(options, {}, scene.file("step-4"));
  CHECK(read_lines(scene.file("alone/metrics.jsonl")).back()["seconds"].get<double>() < 1000);
}

TEST_CASE("checkpoints: the newest and the best stay", "[run]") {
  const Scene scene;
  auto options = scene.evaluated("run", "sft", 12, 3, 2);
  options.checkpoint.keep_best = 2;
  options.evaluate.best_metric = "eval_mean_token_accuracy";
  std::vector<std::pair<double, std::int64_t>> accuracies;
  RunEvents events;
  events.evaluation = [&](std::int64_t step, const Metrics& metrics) {
    if (step > 0) accuracies.emplace_back(-metric(metrics, "mean_token_accuracy"), step);
  };
  run_training(options, events);
  std::stable_sort(accuracies.begin(), accuracies.end());
  std::set<std::string> expected = {"last", "best", "step-10", "step-12"};
  for (std::size_t i = 0; i < 2; ++i) {
    expected.insert("step-" + std::to_string(accuracies[i].second));
  }
  std::set<std::string> found;
  for (const auto& item : fs::directory_iterator(scene.file("run/checkpoints"))) {
    found.insert(item.path().filename());
  }
  CHECK(found == expected);
  CHECK(fs::read_symlink(scene.file("run/checkpoints/best")) ==
        "step-" + std::to_string(accuracies[0].second));
}

TEST_CASE("training ends when patience does, also over a break", "[run]") {
  const Scene scene;
  auto options = scene.options("run", "dpo");
  options.optimizer.learning_rate = 0;  // every evaluation is as the first
  options.optimizer.schedule = Schedule::kConstant;
  options.batch.steps = 30;
  options.evaluate.every = 2;
  options.evaluate.patience = 3;
  RunEvents events;
  std::int64_t steps = 0;
  events.step = [&](std::int64_t step, std::int64_t, const Metrics&) { steps = step; };
  events.should_stop = [&] { return steps == 5; };
  CHECK(run_training(options, events).stopped);
  const auto result = run_training(options, {}, "auto");
  CHECK(result.steps == 8);  // best at 2; 4, 6 and 8 bring nothing
  CHECK_FALSE(result.stopped);
  CHECK(fs::read_symlink(scene.file("run/checkpoints/best")) == "step-2");
  CHECK(run_training(options, {}, "auto").steps == 8);

  options.output_dir = scene.file("other");
  options.data.eval_fraction = 0;
  CHECK_THROWS_TEXT(run_training(options), ConfigError,
                    "evaluate.patience: expected evaluations to count, got no held-out rows; set "
                    "evaluate.every and data.eval or data.eval_fraction");
  options.evaluate.every = 0;
  CHECK_THROWS_TEXT(run_training(options), ConfigError,
                    "evaluate.patience: expected evaluations to count, got evaluate.every 0; set "
                    "evaluate.every and data.eval or data.eval_fraction");
}

TEST_CASE("what a step without an update was is written down", "[run]") {
  const Scene scene;
  auto sft = scene.options("sft", "sft");
  sft.batch.steps = 1;
  const std::string folder = run_training(sft).checkpoint;
  auto model = read_safetensors(folder + "/model.safetensors");
  for (auto& [name, value] : model.tensors) {
    value = value.clone();
    if (name == "model.norm.weight") value[0] = kNan;
  }
  write_safetensors(folder + "/model.safetensors", model);

  auto broken = scene.options("run", "dpo");
  broken.model.path = folder;
  broken.data.eval_fraction = 0;
  const std::string bundle = scene.file("run/nonfinite/step-3");
  CHECK_THROWS_TEXT(run_training(broken), NonFiniteError,
                    "step 3: expected a finite loss, got nan; this is step 3 in a row without an "
                    "update, try a lower learning rate; see " +
                        bundle);
  for (const auto* step : {"step-1", "step-2", "step-3"}) {
    CHECK(fs::exists(scene.file("run/nonfinite/") + step + "/report.json"));
  }
  const auto report = Json::parse(read_text(bundle + "/report.json"));
  CHECK(report["step"] == 3);
  CHECK(report["loss"] == "nan");
  CHECK(report["first_bad_weight"] == "model.norm.weight");
  CHECK(report["first_bad_gradient"] == "model.embed_tokens.weight");
  CHECK(report["offending_rows"].size() == 4);
  const auto rows = read_lines(bundle + "/rows.jsonl");
  REQUIRE(rows.size() == 4);
  CHECK(rows[0]["row"] == report["offending_rows"][0]);
  CHECK(rows[0]["chosen_logps"] == "nan");
  CHECK_FALSE(rows[0]["prompt_ids"].empty());
  CHECK_FALSE(rows[0]["rejected_ids"].empty());

  // Enough is enough.
  broken.output_dir = scene.file("full");
  CHECK_THROWS_AS(run_training(broken), NonFiniteError);
  fs::remove_all(scene.file("full/nonfinite"));
  for (int i = 1; i <= 20; ++i) {
    fs::create_directories(scene.file("full/nonfinite/step-") + std::to_string(100 + i));
  }
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  CHECK_THROWS_TEXT(run_training(broken, events), ConfigError,
                    "output_dir: expected an empty or new folder, got " + scene.file("full") +
                        " with a config.json in it; choose another name, or resume that run");
  CHECK_THROWS_TEXT(run_training(broken, events, "auto"), NonFiniteError,
                    "step 3: expected a finite loss, got nan; this is step 3 in a row without an "
                    "update, try a lower learning rate; see " +
                        scene.file("full/nonfinite/step-3"));
  CHECK_FALSE(fs::exists(scene.file("full/nonfinite/step-1")));
  CHECK(count_containing(notes, "nonfinite: 20 steps are written down") == 1);
  CHECK(count_containing(notes, "; step 1 and later ones are not, but for one that ends the run") ==
        1);
}

TEST_CASE("memory that cannot be had is said with the batch it was for", "[run]") {
  register_watched_loss();
  const Scene scene;
  auto options = scene.options("run", "watched_dpo");
  options.data.eval_fraction = 0;
  options.batch.micro_rows = 3;
  WatchedLoss::before = [] { throw std::bad_alloc(); };
  std::string text;
  try {
    run_training(options);
  } catch (const OutOfMemoryError& error) {
    text = error.what();
  }
  WatchedLoss::before = nullptr;
  INFO(text);
  CHECK(
      text.starts_with("step 1: expected memory for 4 pairs in micro-batches of up to 3 pairs "
                       "and "));
  CHECK(text.find(" tokens, got 'std::bad_alloc' at a peak of ") != std::string::npos);
  CHECK(
      text.ends_with(" MiB; lower batch.micro_tokens or data.max_length, or set "
                     "machine.checkpointing to full"));
}

}  // namespace
}  // namespace prefopt
