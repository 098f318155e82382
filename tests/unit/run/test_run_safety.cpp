// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "prefopt/losses/registry.h"
#include "prefopt/options.h"
#include "prefopt/run/run.h"
#include "prefopt/train/trainer.h"
#include "run/log_window.h"
#include "support/bigram_policy.h"
#include "support/catch.h"
#include "support/checkpoint_parts.h"
#include "support/errors.h"
#include "support/injected_calls.h"
#include "support/no_sync.h"
#include "support/run_scene.h"
#include "support/temp_dir.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

std::string refusal_of(const RunOptions& options, const std::string& resume = {},
                       const RunEvents& events = {}) {
  try {
    run_training(options, events, resume);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "(taken)";
}

bool is_named(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string link_of(const Scene& scene, const std::string& name) {
  return fs::read_symlink(scene.file("run/checkpoints/" + name)).string();
}

// ---- the name of the best metric ----

TEST_CASE("the best metric's name is judged before the first step", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  std::int64_t steps = 0;
  RunEvents events;
  events.step = [&](std::int64_t, std::int64_t, const Metrics&) { ++steps; };
  auto options = scene.options("run", "dpo");
  options.evaluate.best_metric = "eval_los";
  options.machine.threads = 1;
  std::string text = refusal_of(options, "", events);
  CHECK(text.starts_with(
      "evaluate.best_metric: expected a metric of an evaluation, got 'eval_los'; did you mean "
      "'eval_loss'?; there are eval_loss, "));
  CHECK(is_named(text, "eval_rewards/accuracies, "));
  CHECK(steps == 0);
  // The evaluation was not for nothing.
  CHECK(link_of(scene, "last") == "step-0");
  CHECK(is_named(refusal_of(options, "auto", events), "got 'eval_los'"));
  CHECK(steps == 0);
  const auto samples = read_lines(scene.file("run/samples.jsonl"));
  CHECK_FALSE(samples.empty());
  options.evaluate.best_metric = "eval_loss";
  std::int64_t evaluations = 0;
  auto counting = events;
  counting.evaluation = [&](std::int64_t, const Metrics&) { ++evaluations; };
  const Parts resumed = parts_of(run_training(options, counting, "auto").checkpoint);
  CHECK(evaluations == 1);  // of the last step
  options.output_dir = scene.file("straight");
  CHECK(differing(parts_of(run_training(options).checkpoint), resumed).empty());
  CHECK(untimed(scene.file("run")) == untimed(scene.file("straight")));
  const auto shown = read_lines(scene.file("run/samples.jsonl"));
  CHECK(shown == read_lines(scene.file("straight/samples.jsonl")));
  REQUIRE(shown.size() > samples.size());
  CHECK(std::equal(samples.begin(), samples.end(), shown.begin()));
  // Once something was judged by it the metric stays.
  options.evaluate.best_metric = "eval_entropy";
  CHECK(is_named(refusal_of(options, "auto"),
                 "evaluate.best_metric: \"eval_loss\" -> \"eval_entropy\""));

  // Each that only some runs have.
  steps = 0;
  std::int64_t runs = 0;
  const auto refused = [&](RunOptions other, const std::string& name) {
    other.output_dir = scene.file("refused-" + std::to_string(++runs));
    other.evaluate.best_metric = name;
    return refusal_of(other, "", events);
  };
  options = scene.options("run", "dpo");
  options.evaluate.sample_prompts = 0;
  CHECK(is_named(refused(options, "eval_kl"), "evaluate.sample_prompts above 0"));
  options.evaluate.sample_prompts = 2;
  options.sampling.top_k = 3;
  CHECK(is_named(refused(options, "eval_kl"), "evaluate.sample_prompts above 0"));
  CHECK(is_named(refused(scene.options("run", "sft"), "eval_rewards/margins"),
                 "got 'eval_rewards/margins'; there are eval_loss"));
  for (const std::string of_training : {"eval_grad_norm", "learning_rate", "eval_", ""}) {
    CHECK(is_named(refused(options, of_training), "evaluate.best_metric: expected a metric"));
  }
  options.data.eval_fraction = 0;
  CHECK(refused(options, "eval_rewards/margins") ==
        "evaluate.best_metric: expected held-out rows to find 'eval_rewards/margins' of, got none; "
        "set data.eval or data.eval_fraction");
  CHECK_FALSE(fs::exists(scene.file("refused-" + std::to_string(runs))));
  CHECK(steps == 0);

  // Those that are there, by either form of the name.
  for (const std::string good : {"eval_kl", "rewards/margins", "eval_truncated"}) {
    auto right = scene.options("good-" + std::to_string(good.size()), "dpo");
    right.batch.steps = 1;
    right.evaluate.best_metric = good;
    CHECK(refusal_of(right) == "(taken)");
  }
}

TEST_CASE("a run that continues is asked for its best metric as well", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = scene.options("run", "dpo");
  options.optimizer.schedule = Schedule::kConstant;
  options.evaluate.best_metric = "eval_kl";
  options.batch.steps = 2;
  run_training(options);
  options.batch.steps = 4;
  options.evaluate.sample_prompts = 0;
  std::int64_t steps = 0;
  RunEvents events;
  events.step = [&](std::int64_t, std::int64_t, const Metrics&) { ++steps; };
  CHECK(is_named(refusal_of(options, "auto", events), "evaluate.sample_prompts above 0"));
  CHECK(steps == 0);
  options.evaluate.sample_prompts = 1;
  CHECK(refusal_of(options, "auto", events) == "(taken)");
  CHECK(steps == 2);
}

// ---- what fails after steps were done ----

TEST_CASE("a step is saved before an evaluation that is killed", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = scene.evaluated("straight", "dpo", 6, 2, 4);
  const auto straight = run_training(options);
  const Parts expected = parts_of(straight.checkpoint);

  for (const std::int64_t at : {4, 6}) {
    INFO("killed in the evaluation of step " << at);
    options.output_dir = scene.file("killed-" + std::to_string(at));
    struct Killed {};  // no std::exception: nothing of the run hears of it
    RunEvents events;
    events.evaluation = [&](std::int64_t step, const Metrics&) {
      if (step == at) throw Killed();
    };
    CHECK_THROWS_AS(run_training(options, events), Killed);
    const std::string last = options.output_dir + "/checkpoints/last";
    CHECK(fs::read_symlink(last) == "step-" + std::to_string(at));
    CHECK_FALSE(fs::exists(last + "/evaluation.json"));
    // The evaluation is made again, and once.
    const auto result = run_training(options, {}, "auto");
    CHECK(differing(parts_of(result.checkpoint), expected).empty());
    CHECK(untimed(options.output_dir) == untimed(scene.file("straight")));
    CHECK(read_lines(options.output_dir + "/samples.jsonl") ==
          read_lines(scene.file("straight/samples.jsonl")));
    CHECK(result.last_evaluation == straight.last_evaluation);
    CHECK(fs::read_symlink(options.output_dir + "/checkpoints/best") ==
          fs::read_symlink(scene.file("straight/checkpoints/best")));
  }
  // The result of the evaluation is kept with the checkpoint; damaged, it is made again.
  const std::string kept = straight.checkpoint + "/evaluation.json";
  CHECK(fs::exists(kept));
  options.output_dir = scene.file("straight");
  std::int64_t evaluations = 0;
  RunEvents events;
  events.evaluation = [&](std::int64_t, const Metrics&) { ++evaluations; };
  CHECK(run_training(options, events, "auto").last_evaluation == straight.last_evaluation);
  CHECK(evaluations == 0);
  write_text(kept, read_text(kept).substr(0, 40));
  CHECK(run_training(options, events, "auto").last_evaluation == straight.last_evaluation);
  CHECK(evaluations == 1);
}

TEST_CASE("whatever ends a run, its steps are saved", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = scene.evaluated("straight", "dpo", 8, 3, 0);
  const Parts expected = parts_of(run_training(options).checkpoint);
  const auto lines = untimed(options.output_dir);

  const auto at_step = [](std::int64_t wanted) {
    RunEvents events;
    events.step = [=](std::int64_t step, std::int64_t, const Metrics&) {
      if (step == wanted) throw std::runtime_error("broken");
    };
    return events;
  };
  const auto at_evaluation = [](std::int64_t wanted) {
    RunEvents events;
    events.evaluation = [=](std::int64_t step, const Metrics&) {
      if (step == wanted) throw std::bad_alloc();
    };
    return events;
  };
  const std::vector<std::pair<std::int64_t, RunEvents>> ends = {
      {5, at_step(5)}, {6, at_step(6)}, {6, at_evaluation(6)}, {8, at_evaluation(8)}};
  for (std::size_t i = 0; i < ends.size(); ++i) {
    const auto& [step, events] = ends[i];
    INFO("end " << i);
    options.output_dir = scene.file("broken-" + std::to_string(i));
    CHECK_THROWS_AS(run_training(options, events), std::exception);
    CHECK(fs::read_symlink(options.output_dir + "/checkpoints/last") ==
          "step-" + std::to_string(step));
    // The last step was saved before its evaluation.
    CHECK(is_named(read_text(options.output_dir + "/notes.jsonl"),
                   "step " + std::to_string(step) + " is saved in ") == (step < 8));
    CHECK(differing(parts_of(run_training(options, {}, "auto").checkpoint), expected).empty());
    CHECK(untimed(options.output_dir) == lines);
  }
  // Before the first step nothing is.
  options.output_dir = scene.file("early");
  CHECK_THROWS_AS(run_training(options, at_evaluation(0)), std::bad_alloc);
  CHECK_FALSE(fs::exists(scene.file("early/checkpoints/last")));
}

TEST_CASE("a run that ends by steps without an update keeps those before", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = scene.options("run", "sft");
  options.batch.steps = 20;
  options.batch.rows = 1;
  options.data.eval_fraction = 0;
  options.optimizer.schedule = Schedule::kConstant;
  options.optimizer.max_grad_norm = 0;
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  options.optimizer.learning_rate = 1e30;
  CHECK_THROWS_AS(run_training(options, events), NonFiniteError);
  const auto metrics = read_lines(scene.file("run/metrics.jsonl"));
  const auto skipped = std::count_if(metrics.begin(), metrics.end(),
                                     [](const Json& line) { return line.contains("skipped"); });
  CHECK(skipped == 3);  // the third ends the run
  CHECK(count_containing(notes, "loss or gradient is not finite, its update is skipped; see " +
                                    scene.file("run/nonfinite/step-")) == 2);
  const auto steps = std::ssize(metrics);
  for (std::int64_t step = 1; step <= steps; ++step) {
    CHECK(metrics[static_cast<std::size_t>(step - 1)]["step"] == step);
  }
  CHECK(link_of(scene, "last") == "step-" + std::to_string(steps));
  // Resumed, the next such step ends it again, with the rows after those.
  CHECK_THROWS_AS(run_training(options, events, "auto"), NonFiniteError);
  CHECK(fs::exists(scene.file("run/nonfinite/step-" + std::to_string(steps + 1))));
  const auto resumed = read_lines(scene.file("run/metrics.jsonl"));
  REQUIRE(std::ssize(resumed) == steps + 1);
  CHECK(std::equal(metrics.begin(), metrics.end(), resumed.begin()));
  CHECK(resumed.back()["step"] == steps + 1);
  CHECK(resumed.back()["skipped"] == 1);

  // Where no line is due, one of the steps since the last is written all the same.
  options.output_dir = scene.file("seldom");
  options.evaluate.log_every = 100;
  CHECK_THROWS_AS(run_training(options, events), NonFiniteError);
  const auto seldom = read_lines(scene.file("seldom/metrics.jsonl"));
  REQUIRE(seldom.size() == 1);
  CHECK(seldom[0]["step"] == steps);
  CHECK(seldom[0]["skipped"] == 3);
}

// ---- folders that are no run ----

TEST_CASE("a run continues only in a folder that is its own", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = scene.options("run", "dpo");
  options.batch.steps = 1;
  const std::string folder = scene.file("run");
  const auto contents = [&] {
    std::map<std::string, std::string> files;
    for (const auto& item : fs::recursive_directory_iterator(folder)) {
      files[item.path().string()] = item.is_regular_file() ? read_text(item.path()) : "folder";
    }
    return files;
  };
  const auto check_kept = [&](const std::string& why) {
    const auto before = contents();
    const std::string text = refusal_of(options, "auto");
    INFO(text);
    CHECK(text.starts_with("output_dir: expected an empty or new folder, or a run to resume, got " +
                           folder + " with a "));
    CHECK(is_named(text, why));
    CHECK(contents() == before);
  };
  const auto put = [&](const std::string& name, const std::string& text) {
    fs::create_directories(folder);
    write_text(folder + "/" + name, text);
  };
  const auto empty = [&] { fs::remove_all(folder); };

  for (const std::string config :
       {R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 8})", "{}", "[1]", "no JSON",
        R"({"loss": {}, "model": {}, "data": {}, "optimizer": {}, "train": {"stepz": 1}})"}) {
    put("config.json", config);
    put("samples.jsonl", "mine");
    check_kept("config.json in it that no run wrote");
    CHECK(is_named(refusal_of(options, folder), "config.json in it that no run wrote"));
    empty();
  }
  for (const std::string name :
       {"model.gguf", "metrics.jsonl", "report.html", "letter.txt", "config.jsonl"}) {
    put(name, "mine");
    check_kept(name + " in it and no run");
    empty();
  }
  fs::create_directories(folder + "/checkpoints/checkpoint-500");
  check_kept("checkpoints in it and no run");
  empty();

  // Without --resume what it would write over is safe as well.
  for (const std::string name :
       {"notes.jsonl", "samples.jsonl", "report.html", "run.json", "env.json", "metrics.jsonl"}) {
    put(name, "mine");
    CHECK(is_named(refusal_of(options), "with a " + name + " in it"));
    CHECK(read_text(folder + "/" + name) == "mine");
    empty();
  }

  // An empty folder, and what a run leaves that was killed before it began.
  fs::create_directories(folder + "/checkpoints");
  put("run.lock", "12");
  fs::create_directories(folder + "/reference-cache");
  CHECK(refusal_of(options, "auto") == "(taken)");
  CHECK(refusal_of(options, "auto") == "(taken)");
}

TEST_CASE("a run without a checkpoint starts again with its own options only", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = scene.options("run", "dpo");
  options.batch.steps = 2;
  RunEvents events;
  events.step = [](std::int64_t, std::int64_t, const Metrics&) { throw 1; };  // as if killed
  CHECK_THROWS_AS(run_training(options, events), int);
  const std::string config = read_text(scene.file("run/config.json"));
  auto other = options;
  other.loss = R"({"type": "ipo"})";
  const std::string text = refusal_of(other, "auto");
  CHECK(is_named(text, "loss.type: \"dpo\" -> \"ipo\""));
  CHECK(text.ends_with("; undo that, or choose another output_dir"));
  CHECK(read_text(scene.file("run/config.json")) == config);
  other = options;
  other.checkpoint.every = 1;  // changes no result
  CHECK(run_training(other, {}, "auto").steps == 2);
}

// ---- what is left behind, and links ----

TEST_CASE("a start removes what killed processes left", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = scene.options("run", "dpo");
  options.batch.steps = 1;
  options.reference.kind = ReferenceKind::kCached;
  options.reference.cache_dir = scene.file("references");
  options.data.token_cache = scene.file("tokens");
  run_training(options);
  const std::string cached = fs::directory_iterator(scene.file("references"))->path().string();
  const std::string tokens = fs::directory_iterator(scene.file("tokens"))->path().string();
  const std::vector<std::string> left = {scene.file("run/config.json.aB3xYz"),
                                         scene.file("run/report.html.zQ8pLm"), cached + ".kT5rWq",
                                         tokens + ".Jd7fGh"};
  const std::vector<std::string> kept = {scene.file("run/config.json.backup"),
                                         scene.file("references/other.txt.aB3xYz")};
  for (const auto* names : {&left, &kept}) {
    for (const std::string& name : *names) {
      write_text(name, "left");
      fs::permissions(name, fs::perms::owner_read | fs::perms::owner_write);
      fs::last_write_time(name, fs::last_write_time(name) - std::chrono::hours(25));
    }
  }
  run_training(options, {}, "auto");
  for (const std::string& name : left) CHECK_FALSE(fs::exists(name));
  for (const std::string& name : kept) CHECK(fs::exists(name));
}

TEST_CASE("a run on a drive without symbolic links saves and continues", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = scene.options("run", "dpo");
  options.optimizer.schedule = Schedule::kConstant;
  options.batch.steps = 3;
  options.checkpoint.every = 1;
  InjectedCalls calls;
  calls->symlink = [](const char*, const char*) {
    errno = EPERM;
    return -1;
  };
  CHECK(run_training(options).steps == 3);
  const std::string last = scene.file("run/checkpoints/last");
  CHECK(fs::is_regular_file(fs::symlink_status(last)));
  options.batch.steps = 4;
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  CHECK(run_training(options, events, "auto").steps == 4);
  CHECK(count_containing(notes, "resume: continues after step 3 of 4") == 1);
  // By its name, in another folder and in the same.
  options.batch.steps = 5;
  auto copy = options;
  copy.output_dir = scene.file("copy");
  CHECK(run_training(copy, {}, last).steps == 5);
  CHECK(run_training(options, {}, last).steps == 5);
  // As a model.
  CHECK(Decoder::load(last)->vocab_size() == Decoder::load(last + "/")->vocab_size());
  auto tuned = scene.options("tuned", "sft");
  tuned.model.path = last;
  tuned.model.decoder = {};
  tuned.batch.steps = 1;
  CHECK(run_training(tuned).steps == 1);
}

TEST_CASE("a run that continues from an earlier step has that step's best", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = scene.evaluated("run", "dpo", 6, 2, 2);
  options.checkpoint.keep_last = 0;
  options.evaluate.best_metric = "eval_num_tokens";  // the last one is always the best
  run_training(options);
  REQUIRE(link_of(scene, "best") == "step-6");
  fs::remove(scene.file("run/checkpoints/step-6/model.safetensors"));
  RunEvents events;
  events.should_stop = [] { return true; };
  run_training(options, events, "auto");
  CHECK(link_of(scene, "last") == "step-4");
  CHECK(link_of(scene, "best") == "step-4");
}

// ---- metrics of several steps ----

TEST_CASE("a line of metrics is the mean of the steps since the last one", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = scene.options("each", "dpo");
  options.batch.steps = 7;
  options.data.eval_fraction = 0;
  options.machine.threads = 1;
  run_training(options);
  const auto each = untimed(scene.file("each"));
  REQUIRE(each.size() == 7);
  options.output_dir = scene.file("three");
  options.evaluate.log_every = 3;
  run_training(options);
  const auto three = untimed(scene.file("three"));
  REQUIRE(three.size() == 3);  // steps 3, 6 and 7
  CHECK(three[2] == each[6]);
  for (const std::size_t line : {0, 1}) {
    CHECK(three[line]["step"] == 3 * (line + 1));
    const auto mean = [&](const std::string& name) {
      double sum = 0;
      for (std::size_t i = 0; i < 3; ++i) sum += each[3 * line + i][name].get<double>();
      return sum / 3;
    };
    for (const auto* name : {"loss", "grad_norm", "rewards/margins", "rewards/accuracies",
                             "logps/chosen", "lengths/chosen", "truncated"}) {
      CAPTURE(name);
      CHECK(three[line][name].get<double>() == Approx(mean(name)).epsilon(1e-12));
    }
    // A mean over tokens is weighted by them.
    double sum = 0;
    double tokens = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      const Json& step = each[3 * line + i];
      const double weight = step["lengths/chosen"].get<double>();
      sum += weight * step["mean_token_accuracy"].get<double>();
      tokens += weight;
    }
    CHECK(three[line]["mean_token_accuracy"].get<double>() == Approx(sum / tokens).epsilon(1e-12));
    for (const auto* name : {"learning_rate", "num_tokens", "epoch"}) {
      CHECK(three[line][name] == each[3 * line + 2][name]);
    }
  }

  // Over a break between two lines it is the same to the last bit.
  for (const std::int64_t stop : {1, 2, 5}) {
    options.output_dir = scene.file("broken-" + std::to_string(stop));
    std::int64_t steps = 0;
    RunEvents events;
    events.step = [&](std::int64_t step, std::int64_t, const Metrics&) { steps = step; };
    events.should_stop = [&] { return steps == stop; };
    CHECK(run_training(options, events).stopped);
    run_training(options, {}, "auto");
    CHECK(untimed(options.output_dir) == three);
  }
}

TEST_CASE("steps without an update are counted in a line and not averaged", "[run]") {
  detail::LogWindow window;
  window.add({{"loss", 1}, {"learning_rate", 0.1}, {"rewards/chosen", 2}}, {{"rewards/chosen", 1}});
  CHECK(window.mean() == Metrics{{"loss", 1}, {"learning_rate", 0.1}, {"rewards/chosen", 2}});
  window.add({{"loss", std::nan("")}, {"learning_rate", 0.2}, {"skipped", 1}}, {});
  window.add({{"loss", 3}, {"learning_rate", 0.3}}, {});
  window.add({{"loss", 5}, {"learning_rate", 0.4}, {"rewards/chosen", 5}}, {{"rewards/chosen", 3}});
  window.add({{"loss", INFINITY}, {"learning_rate", 0.5}, {"skipped", 1}}, {});
  const Metrics expected = {
      {"loss", 3}, {"learning_rate", 0.5}, {"rewards/chosen", (2.0 + 15) / 4}, {"skipped", 2}};
  CHECK(window.mean() == expected);
  detail::LogWindow copy;
  copy.load(detail::Json::parse(window.state().dump()));
  CHECK(copy.mean() == expected);
  CHECK(copy.steps() == 5);
  CHECK(copy.state() == window.state());

  window.clear();
  CHECK(window.steps() == 0);
  for (int i = 0; i < 3; ++i) {
    window.add({{"loss", INFINITY}, {"num_tokens", i}, {"skipped", 1}}, {});
  }
  CHECK(window.mean() == Metrics{{"loss", INFINITY}, {"num_tokens", 2}, {"skipped", 3}});
}

TEST_CASE("a step's counts are those of its metrics", "[run]") {
  auto policy = std::make_shared<BigramPolicy>(3);
  Trainer trainer(policy, make_frozen_reference(policy->frozen_copy()),
                  make_loss(R"({"type": "dpo"})"),
                  {.optimizer = {.schedule = Schedule::kConstant}, .micro_batch_size = 2});
  trainer.step(pairs());
  double chosen = 0;
  double all = 0;
  for (const TokenRow& pair : pairs()) {
    chosen += static_cast<double>(pair.chosen.size());
    all += static_cast<double>(pair.chosen.size() + pair.rejected.size());
  }
  CHECK(metric(trainer.step_counts(), "mean_token_accuracy") == chosen);
  CHECK(metric(trainer.step_counts(), "entropy") == all);
  CHECK(metric(trainer.step_counts(), "rewards/margins") == static_cast<double>(pairs().size()));
}

// ---- checkpoints of the first version ----

TEST_CASE("a run that the first version wrote is resumed in its folder", "[run]") {
  const NoSync no_sync;
  const TempDir folder;
  const std::string first = PREFOPT_TEST_DATA_DIR "/first-version/";
  fs::copy(first + "run", folder.file("run"), fs::copy_options::recursive);
  fs::create_symlink("step-2", folder.file("run/checkpoints/last"));
  auto options = options_from_json<RunOptions>(read_text(first + "run/config.json"), "config.json");
  options.output_dir = folder.file("run");
  options.model.path = first + "base";
  options.data.train = first + "pairs.jsonl";
  options.reference.cache_dir.clear();
  const auto result = run_training(options, {}, "auto");
  CHECK(result.steps == 4);
  const auto expected = read_safetensors(first + "expected.safetensors").tensors;
  const auto found = read_safetensors(result.checkpoint + "/model.safetensors").tensors;
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    CHECK(found[i].first == expected[i].first);
    CHECK(at::allclose(found[i].second, expected[i].second, 1e-4, 1e-6));
  }
  const auto before = read_lines(first + "run/metrics.jsonl");
  const auto now = read_lines(folder.file("run/metrics.jsonl"));
  REQUIRE(now.size() == before.size());
  for (std::size_t i = 0; i < now.size(); ++i) {
    CHECK(now[i]["step"] == before[i]["step"]);
    for (const auto* name : {"loss", "eval_loss", "grad_norm", "num_tokens", "eval_kl"}) {
      CAPTURE(i, name);
      REQUIRE(now[i].contains(name) == before[i].contains(name));
      if (!now[i].contains(name)) continue;
      CHECK(now[i][name].get<double>() ==
            Approx(before[i][name].get<double>()).epsilon(1e-4).margin(1e-6));
    }
  }
}

TEST_CASE("a checkpoint without what the first version did not have is resumed", "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = scene.options("straight", "dpo");
  options.batch.steps = 4;
  options.machine.threads = 1;
  options.checkpoint.every = 1;
  options.checkpoint.keep_last = 0;
  const Parts expected = parts_of(run_training(options).checkpoint);
  // As it was then: without a version, and without options that came later.
  const auto age = [](Json& values) {
    for (const auto* key : {"evaluation_is_due", "unlogged"}) values.erase(key);
    values["identity"].erase("version");
    Json& config = values["identity"]["config"];
    config["data"].erase("invalid_utf8");
    config["optimizer"].erase("state_dtype");
    config["loss"].erase("label_smoothing");
  };
  copy_changed(scene.file("straight/checkpoints/step-2"), scene.file("old"),
               [&](Tensors&, Json& values) { age(values); });
  options.output_dir = scene.file("run");
  const auto result = run_training(options, {}, scene.file("old"));
  CHECK(differing(parts_of(result.checkpoint), expected).empty());
  // A change by such an option is refused by name.
  options.output_dir = scene.file("other");
  options.optimizer.state_dtype = StateDtype::kBFloat16;
  CHECK(refusal_of(options, scene.file("old")) ==
        "resume: expected the options and contents that " + scene.file("old") +
            " was saved with, got optimizer.state_dtype: none -> \"bfloat16\"; undo that, or start "
            "a new run, with model.path " +
            scene.file("old") +
            " to train on from its weights: an earlier version of prefopt saved it");
}

TEST_CASE("what came later to a term or to the samples of evaluations does not end a run",
          "[run]") {
  const NoSync no_sync;
  const Scene scene;
  auto options = scene.options("straight", "dpo");
  options.loss = R"({"type": "mix", "terms": [{"loss": {"type": "dpo"}},
                     {"weight": 0.5, "loss": {"type": "sft"}}]})";
  options.batch.steps = 4;
  options.machine.threads = 1;
  options.checkpoint.every = 1;
  options.checkpoint.keep_last = 0;
  options.evaluate.sample_prompts = 0;
  const Parts expected = parts_of(run_training(options).checkpoint);
  const std::string old = scene.file("old");
  copy_changed(scene.file("straight/checkpoints/step-2"), old, [](Tensors&, Json& values) {
    Json& config = values["identity"]["config"];
    for (Json& term : config["loss"]["terms"]) {
      for (const auto* key : {"label_smoothing", "humanline", "use_weights"}) {
        term["loss"].erase(key);
      }
    }
    config["sampling"].erase("extra_eos_ids");
  });
  options.output_dir = scene.file("run");
  options.sampling.eos_id = 257;
  options.sampling.extra_eos_ids = {10, 33};
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  CHECK(differing(parts_of(run_training(options, events, old).checkpoint), expected).empty());
  CHECK(count_containing(notes,
                         "resume: sampling.extra_eos_ids: none -> [10,33]; evaluations draw other "
                         "samples from here on, and estimate kl by them") == 1);
  // Another value is refused by the name of its term.
  options.output_dir = scene.file("other");
  options.loss = R"({"type": "mix", "terms": [{"loss": {"type": "dpo", "label_smoothing": 0.1}},
                     {"weight": 0.25, "loss": {"type": "sft"}}]})";
  const std::string text = refusal_of(options, old);
  INFO(text);
  CHECK(is_named(text,
                 "got loss.terms.0.loss.label_smoothing: 0.0 -> 0.1, loss.terms.1.weight: 0.5 -> "
                 "0.25; undo that"));

  // A loss that draws samples would become another one.
  options = scene.options("drawn", "hypo");
  options.batch.steps = 1;
  options.data.eval_fraction = 0;
  run_training(options);
  options.sampling.extra_eos_ids = {10};
  options.sampling.eos_id = 257;
  CHECK(is_named(refusal_of(options, "auto"), "got sampling.extra_eos_ids: [] -> [10]; undo"));
}

TEST_CASE("the margin of labelled rows in a window is that of its two means", "[run]") {
  detail::LogWindow window;
  window.add({{"rewards/chosen", 1}, {"rewards/rejected", 0.5}, {"rewards/margins", 0.5}},
             {{"rewards/chosen", 3}, {"rewards/rejected", 1}});
  window.add({{"rewards/chosen", 0}, {"rewards/rejected", -1}, {"rewards/margins", 1}},
             {{"rewards/chosen", 1}, {"rewards/rejected", 3}});
  window.add({{"rewards/rejected", 3}, {"logps/chosen", -1}}, {{"rewards/rejected", 4}});
  CHECK(window.mean() == Metrics{{"rewards/chosen", 0.75},
                                 {"rewards/rejected", 1.1875},
                                 {"rewards/margins", -0.4375},
                                 {"logps/chosen", -1}});
}

TEST_CASE("a window of labelled rows has the margin of a step with all of them", "[run]") {
  std::vector<TokenRow> rows = pairs();
  // One desirable row in front, none behind: as many values of the one side as steps with margins.
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i].columns[Column::kLabel] = i == 0 ? 1 : 0;
  const auto policy = std::make_shared<BigramPolicy>(3);
  const auto reference = make_frozen_reference(BigramPolicy(8).frozen_copy());
  const auto make = [&] {
    return Trainer(policy, reference, make_loss(R"({"type": "kto", "estimate_kl": false})"),
                   {.optimizer = {.learning_rate = 0, .schedule = Schedule::kConstant}});
  };
  Trainer parts = make();
  detail::LogWindow window;
  for (const auto& batch :
       {std::vector(rows.begin(), rows.begin() + 2), std::vector(rows.begin() + 2, rows.end())}) {
    const Metrics metrics = parts.step(batch);
    window.add(metrics, parts.step_counts());
  }
  const Metrics whole = make().step(rows);
  const Metrics mean = window.mean();
  for (const auto* name : {"rewards/chosen", "rewards/rejected", "rewards/margins"}) {
    CAPTURE(name);
    CHECK(metric(mean, name) == Approx(metric(whole, name)).epsilon(1e-12));
  }
}

}  // namespace

}  // namespace prefopt
