// SPDX-License-Identifier: Apache-2.0
// Runs of several ranks, which are threads here, against the run of one process.

#include <ATen/Context.h>
#include <fcntl.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/controlled_task.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/options.h"
#include "prefopt/run/run.h"
#include "run/plan/run_plan.h"
#include "run/resolve.h"
#include "run/run_rows.h"
#include "support/catch.h"
#include "support/checkpoint_distance.h"
#include "support/checkpoint_parts.h"
#include "support/injected_calls.h"
#include "support/no_sync.h"
#include "support/run_scene.h"
#include "support/thread_ranks.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

/// Of two orders of additions in float64.
constexpr double kRounding = 1e-12;

/// Rows, a model in a folder (threads share LibTorch's generator, which makes fresh weights), and
/// short runs on them.
class RankScene : public Scene {
 public:
  RankScene() {
    at::manual_seed(7);
    Decoder model(kTiny);
    model.to(at::kDouble);
    fs::create_directories(file("model"));
    model.save(file("model"));
    ControlledTask task({.seed = 3});
    std::ofstream prompts(file("prompts.jsonl"));
    for (int i = 0; i < 9; ++i) prompts << Json{{"prompt", task.sample_prompt()}}.dump() << '\n';
  }

  /// Uneven on two and on three ranks.
  RunOptions rank_options(const std::string& run, const std::string& type = "dpo") const {
    RunOptions options = this->options(run, type);
    options.model.path = file("model");
    options.model.tokenizer = "byte";
    options.model.dtype = "float64";
    options.batch.rows = 5;
    options.batch.micro_rows = 2;
    options.batch.steps = 4;
    options.evaluate.every = 2;
    options.machine.threads = 1;
    options.distributed.timeout_seconds = 20;
    return options;
  }

  /// The same of a run that writes its rows, with a program's rewards.
  RunOptions online_options(const std::string& run, const Json& loss) const {
    const std::string answer =
        "while read -r line; do set -- $(printf %s \"$line\" | cksum); n=$(($1 % 90 + 5)); "
        "echo \"{\\\"reward\\\": 0.$n}\"; done";
    Json config = {
        {"output_dir", file(run)},
        {"loss", loss},
        {"model", {{"path", file("model")}, {"tokenizer", "byte"}, {"dtype", "float64"}}},
        {"online",
         {{"prompts", file("prompts.jsonl")},
          {"eval_fraction", 0.34},
          {"sources", {{{"from", "policy"}, {"n", 3}}}},
          {"feedback", {{"reward", {"/bin/sh", "-c", answer}}}},
          {"rounds", {{"rounds", 2}, {"prompts", 5}}}}},
        {"optimizer", {{"learning_rate", 1e-2}}},
        {"sampling", {{"max_new_tokens", 5}}},
        {"machine", {{"threads", 1}}},
        {"distributed", {{"timeout_seconds", 20}}}};
    return options_from_json<RunOptions>(config.dump(), "run");
  }
};

/// Gives each rank its options.
using OptionsOfRank = std::function<RunOptions(int rank)>;

std::vector<std::exception_ptr> failures_on(int size, const OptionsOfRank& options_of,
                                            const std::function<RunEvents(int rank)>& events_of,
                                            const std::string& resume = {}) {
  return ThreadRanks(size).troubles([&](const std::shared_ptr<Ranks>& ranks) {
    run_training(options_of(ranks->rank()), events_of(ranks->rank()), resume, ranks);
  });
}

RunEvents no_events(int /*rank*/) { return {}; }

void run_on(int size, const RunOptions& options, const std::string& resume = {}) {
  ThreadRanks(size, options.distributed).run([&](const std::shared_ptr<Ranks>& ranks) {
    run_training(options, {}, resume, ranks);
  });
}

template <class E>
std::string text_of(const std::exception_ptr& error) {
  if (!error) return "(nothing)";
  try {
    std::rethrow_exception(error);
  } catch (const E& of_type) {
    return of_type.what();
  } catch (const std::exception& other) {
    return std::string("of another type: ") + other.what();
  }
}

/// Two steps of a run, by as many ranks.
struct Leg {
  int size;
  Sharding sharding = Sharding::kNone;
};

/// Checks that `run`, resumed at each leg, has the checkpoints of `straight`, which one process
/// trains.
void check_legs(const RankScene& scene, RunOptions options, const std::vector<Leg>& legs) {
  options.optimizer.schedule = Schedule::kConstant;
  options.checkpoint.every = 1;
  options.checkpoint.keep_last = 0;
  options.batch.steps = 2 * std::ssize(legs);
  run_training(options);
  options.output_dir = scene.file("run");
  options.batch.steps = 0;
  for (const Leg& leg : legs) {
    options.batch.steps += 2;
    options.distributed.sharding = leg.sharding;
    run_on(leg.size, options, "auto");
    const std::string step = "/checkpoints/step-" + std::to_string(options.batch.steps);
    CHECK(distance(options.output_dir + step, scene.file("straight") + step) <= kRounding);
  }
}

TEST_CASE("ranks train as one process does, and rank 0 alone writes and speaks", "[run]") {
  const NoSync no_sync;
  const RankScene scene;
  run_training(scene.rank_options("one"));
  for (const int size : {2, 3}) {
    const std::string name = "of" + std::to_string(size);
    const std::string run = scene.file(name);
    std::vector<std::vector<std::string>> notes(3);
    std::vector<std::int64_t> steps(3);
    const auto events = [&](int rank) {
      RunEvents of_rank;
      of_rank.note = [&notes, rank](const std::string& line) { notes.at(rank).push_back(line); };
      of_rank.step = [&steps, rank](std::int64_t, std::int64_t, const Metrics&) {
        ++steps.at(rank);
      };
      return of_rank;
    };
    for (const auto& failure : failures_on(
             size, [&](int) { return scene.rank_options(name); }, events)) {
      CHECK(text_of<Error>(failure) == "(nothing)");
    }
    CHECK(distance(run + "/checkpoints/last", scene.file("one/checkpoints/last")) <= kRounding);
    CHECK(distance(run + "/checkpoints/best", scene.file("one/checkpoints/best")) <= kRounding);
    check_same_metrics(run, scene.file("one"), kRounding);
    CHECK_FALSE(notes[0].empty());
    CHECK(notes[1].empty());
    CHECK(steps[0] == 4);
    CHECK(steps[1] == 4);
    const auto samples = read_lines(run + "/samples.jsonl");
    const auto alone = read_lines(scene.file("one/samples.jsonl"));
    REQUIRE(samples.size() == alone.size());
    for (std::size_t i = 0; i < samples.size(); ++i) {
      CHECK(samples[i]["policy"] == alone[i]["policy"]);
      CHECK(samples[i]["index"] == alone[i]["index"]);
    }
    const Json environment = Json::parse(read_text(run + "/env.json"));
    CHECK(environment["ranks"] == size);
    CHECK(environment["backend"] == "gloo");
    CHECK(environment["launcher"] == "none");
    CHECK(environment["machines"].size() == static_cast<std::size_t>(size));
  }
  CHECK_FALSE(Json::parse(read_text(scene.file("one/env.json"))).contains("ranks"));
}

TEST_CASE("a run of ranks is resumed by another number of them", "[run]") {
  const NoSync no_sync;
  const RankScene scene;
  check_legs(scene, scene.rank_options("straight"), {{2}, {1}, {3}});
  std::vector<std::string> notes;
  for (const Json& line : read_lines(scene.file("run/notes.jsonl"))) notes.push_back(line["note"]);
  CHECK(count_containing(notes, "resume: ranks: 2 -> 1; results may differ in their last digits") ==
        1);
  CHECK(count_containing(notes, "resume: ranks: 1 -> 3; results may differ in their last digits") ==
        1);
}

TEST_CASE("a run in slices of weights is resumed out of them and back", "[run]") {
  const NoSync no_sync;
  const RankScene scene;
  auto options = scene.rank_options("straight");
  const bool has_adapter = GENERATE(false, true);
  if (has_adapter) {
    const auto adapted = Decoder::load(scene.file("model"));
    adapted->add_adapter({.r = 2, .init_lora_weights = "false"});
    adapted->save(scene.file("adapter"));
    options.model.adapter = scene.file("adapter");
  }
  options.reference.moving = GENERATE(false, true);
  options.reference.update.update_steps = 1;
  CAPTURE(has_adapter, options.reference.moving);
  check_legs(scene, options, {{2, Sharding::kWeights}, {1}, {3, Sharding::kWeights}});
  check_same_metrics(scene.file("run"), scene.file("straight"), kRounding);
}

TEST_CASE("a note names the sharding that a config leaves out", "[run]") {
  const NoSync no_sync;
  const RankScene scene;
  auto options = scene.rank_options("run");
  options.optimizer.schedule = Schedule::kConstant;
  options.batch.steps = 1;
  options.distributed.sharding = Sharding::kOptimizer;
  run_on(2, options);
  options.batch.steps = 2;
  options.distributed = {};
  run_training(options, {}, "auto");
  std::vector<std::string> notes;
  for (const Json& line : read_lines(scene.file("run/notes.jsonl"))) notes.push_back(line["note"]);
  CHECK(count_containing(notes, R"(resume: distributed.sharding: "optimizer" -> "none"; results )"
                                "may differ in their last digits") == 1);
}

TEST_CASE("ranks say how uneven their work is, as a plan does", "[run]") {
  const NoSync no_sync;
  const RankScene scene;
  for (const int size : {2, 3}) {
    auto options = scene.rank_options("of" + std::to_string(size));
    options.batch.micro_rows = 1;
    run_on(size, options);
    const auto tokenizer = detail::open_run_tokenizer(options.model);
    const RowNeeds needs = row_needs(make_loss(options.loss).requirements());
    const detail::RunRows rows =
        detail::load_rows(options.data, *tokenizer, needs, [](const std::string&) {});
    double before = 0;
    std::int64_t steps = 0;
    for (const Json& line : untimed(options.output_dir)) {
      if (!line.contains("loss")) continue;
      ++steps;
      const detail::RunPlan plan = plan_run(options, rows, {.ranks = size}, steps);
      const double sum = plan.dealing.back().imbalance * static_cast<double>(steps);
      CAPTURE(size, steps);
      CHECK(std::abs(line["ranks/imbalance"].get<double>() - (sum - before)) <= 1e-14);
      CHECK(line["ranks/imbalance"] >= 1);
      before = sum;
    }
    CHECK(steps == 4);
    CHECK(before > static_cast<double>(steps));  // not even
  }
  run_training(scene.rank_options("one"));
  CHECK_FALSE(untimed(scene.file("one")).back().contains("ranks/imbalance"));
}

TEST_CASE("ranks share the log-probs of a cached reference", "[run]") {
  const NoSync no_sync;
  const RankScene scene;
  auto options = scene.rank_options("one");
  options.reference.kind = ReferenceKind::kCached;
  run_training(options);
  options.output_dir = scene.file("run");
  run_on(2, options);
  CHECK(distance(scene.file("run/checkpoints/last"), scene.file("one/checkpoints/last")) <=
        kRounding);
  check_same_metrics(scene.file("run"), scene.file("one"), kRounding);
  std::vector<std::string> notes;
  for (const Json& line : read_lines(scene.file("run/notes.jsonl"))) notes.push_back(line["note"]);
  // 18 rows of training, all of which four steps of five take, and 6 held out, of two completions.
  CHECK(count_containing(
            notes, "reference: 2 ranks scored 24 rows, rank 0 computed 24 sequences of them") == 1);
  // One file, which has them all.
  std::vector<std::string> files;
  for (const auto& file : fs::directory_iterator(scene.file("run/reference-cache"))) {
    files.push_back(file.path().string());
  }
  REQUIRE(files.size() == 1);
  for (const auto& [name, tensor] : read_safetensors(files[0]).tensors) {
    if (name == "sequence_logps") CHECK(tensor.size(0) == 48);
  }
}

TEST_CASE("ranks with other options or other files are refused by name", "[run]") {
  const NoSync no_sync;
  const RankScene scene;
  const auto refused = [&](const std::function<void(RunOptions&)>& change) {
    const auto failures = failures_on(
        2,
        [&](int rank) {
          auto options = scene.rank_options("run");
          if (rank == 1) change(options);
          return options;
        },
        no_events);
    const std::string text = text_of<ConfigError>(failures[0]);
    CHECK(text_of<ConfigError>(failures[1]) == text);
    CHECK_FALSE(fs::exists(scene.file("run")));
    return text;
  };
  CHECK(refused([](RunOptions& options) { options.batch.rows = 8; }) ==
        "rank 1: expected the options of rank 0, got batch.rows: 5 -> 8");
  ControlledTask task({.seed = 6});
  task.write_preferences(scene.file("other.jsonl"), 24);
  CHECK(refused([&](RunOptions& options) { options.data.train = scene.file("other.jsonl"); }) ==
        "rank 1: expected data.train with the contents that rank 0 has from '" +
            scene.file("pairs.jsonl") + "', got others from '" + scene.file("other.jsonl") + "'");
  at::manual_seed(8);
  Decoder model(kTiny);
  model.to(at::kDouble);
  fs::create_directories(scene.file("other"));
  model.save(scene.file("other"));
  CHECK(refused([&](RunOptions& options) { options.model.path = scene.file("other"); }) ==
        "rank 1: expected model.path with the contents that rank 0 has from '" +
            scene.file("model") + "', got others from '" + scene.file("other") + "'");
  // Copies elsewhere are the same files.
  fs::copy(scene.file("model"), scene.file("copy"));
  for (const auto& failure : failures_on(
           2,
           [&](int rank) {
             auto options = scene.rank_options("taken");
             options.batch.steps = 1;
             if (rank == 1) options.model.path = scene.file("copy");
             return options;
           },
           no_events)) {
    CHECK(text_of<Error>(failure) == "(nothing)");
  }
  // Ranks that joined with other options than those of the run.
  auto options = scene.rank_options("run");
  options.distributed.bucket_mib = 3;
  const auto failures = failures_on(
      2, [&](int) { return options; }, no_events);
  CHECK(text_of<ConfigError>(failures[1])
            .starts_with("run: expected ranks that joined with distributed {"));
}

TEST_CASE("the trouble of one rank ends all of them with its text", "[run]") {
  const NoSync no_sync;
  const RankScene scene;
  SECTION("before the first step") {
    const auto failures = failures_on(
        3,
        [&](int rank) {
          auto options = scene.rank_options("run");
          if (rank == 1) options.data.train = scene.file("missing.jsonl");
          return options;
        },
        no_events);
    const std::string own = text_of<DataError>(failures[1]);
    CHECK(own.starts_with(scene.file("missing.jsonl")));
    CHECK(text_of<DataError>(failures[0]) == "rank 1: " + own);
    CHECK(text_of<DataError>(failures[2]) == "rank 1: " + own);
    CHECK_FALSE(fs::exists(scene.file("run")));
  }
  SECTION("between steps, where rank 0 saves") {
    const auto failures = failures_on(
        2, [&](int) { return scene.rank_options("run"); },
        [](int rank) {
          RunEvents events;
          events.step = [rank](std::int64_t step, std::int64_t, const Metrics&) {
            if (rank == 1 && step == 3) throw CheckpointError("no space");
          };
          return events;
        });
    CHECK(text_of<CheckpointError>(failures[0]) == "rank 1: no space");
    CHECK(text_of<CheckpointError>(failures[1]) == "no space");
    CHECK(fs::read_symlink(scene.file("run/checkpoints/last")) == "step-3");
  }
  SECTION("a folder that is taken") {
    run_training(scene.rank_options("run"));
    const auto failures = failures_on(
        2, [&](int) { return scene.rank_options("run"); }, no_events);
    const std::string own = text_of<ConfigError>(failures[0]);
    CHECK(own.starts_with("output_dir: expected an empty or new folder"));
    CHECK(text_of<ConfigError>(failures[1]) == "rank 0: " + own);
  }
}

/// Fails as a full disk does, where a checkpoint's tensors of step 2 are to be written.
struct FullDisk {
  explicit FullDisk(int times) {
    left = times;
    calls->open = [](const char* path, int flags, mode_t mode) {
      const std::string_view text = path;
      const bool is_due = text.find(".step-2.") != std::string_view::npos &&
                          text.find("training_state.safetensors") != std::string_view::npos;
      if (is_due && left.fetch_sub(1) > 0) {
        errno = ENOSPC;
        return -1;
      }
      return ::open(path, flags, mode);
    };
  }
  InjectedCalls calls;
  static std::atomic<int> left;
};
std::atomic<int> FullDisk::left = 0;

TEST_CASE("a disk that is full on rank 0 ends all ranks, which save together", "[run]") {
  const NoSync no_sync;
  const RankScene scene;
  auto options = scene.rank_options("run");
  options.checkpoint.every = 1;
  options.batch.steps = 3;
  const auto sharding = GENERATE(Sharding::kNone, Sharding::kOptimizer, Sharding::kWeights);
  CAPTURE(sharding);
  options.distributed.sharding = sharding;
  if (sharding == Sharding::kNone) {
    options.reference.kind = ReferenceKind::kCached;  // whose ranks share what they computed
  }
  const auto trained = [&](const std::string& run) {
    options.output_dir = scene.file(run);
    return ThreadRanks(2, options.distributed).troubles([&](const std::shared_ptr<Ranks>& ranks) {
      run_training(options, {}, {}, ranks);
    });
  };
  for (const auto& failure : trained("whole")) REQUIRE(failure == nullptr);
  for (const int times : {1, 2}) {
    CAPTURE(times);
    const std::string run = "full" + std::to_string(times);
    const FullDisk disk(times);
    const auto failures = trained(run);
    const std::string own = text_of<CheckpointError>(failures[0]);
    CHECK(own.ends_with("No space left on device"));
    CHECK(text_of<CheckpointError>(failures[1]) == "rank 0: " + own);
    const std::string checkpoints = scene.file(run + "/checkpoints/");
    CHECK(fs::read_symlink(checkpoints + "last") == (times == 1 ? "step-2" : "step-1"));
    if (times > 1) continue;
    CHECK(distance(checkpoints + "step-2", scene.file("whole/checkpoints/step-2")) == 0);
  }
}

TEST_CASE("a wish to stop on one rank stops all at the same step", "[run]") {
  const NoSync no_sync;
  const RankScene scene;
  std::vector<std::int64_t> steps(3);
  ThreadRanks(3).run([&](const std::shared_ptr<Ranks>& ranks) {
    const auto rank = static_cast<std::size_t>(ranks->rank());
    RunEvents events;
    events.should_stop = [&] { return rank == 2 && steps[rank] == 2; };
    events.step = [&](std::int64_t step, std::int64_t, const Metrics&) { steps[rank] = step; };
    const RunResult result = run_training(scene.rank_options("run"), events, {}, ranks);
    if (!result.stopped || result.steps != 2) throw Error("expected to be stopped after 2 steps");
  });
  CHECK(steps == std::vector<std::int64_t>{2, 2, 2});
  CHECK(fs::read_symlink(scene.file("run/checkpoints/last")) == "step-2");
}

TEST_CASE("ranks share the prompts of rounds, and have the same rows", "[run]") {
  const NoSync no_sync;
  const RankScene scene;
  const Json loss = GENERATE(Json{{"type", "dpo"}}, Json{{"type", "grpo"}});
  CAPTURE(loss.dump());
  const auto sharding = GENERATE(Sharding::kNone, Sharding::kWeights);
  CAPTURE(sharding);
  run_training(scene.online_options("one", loss));
  auto options = scene.online_options("run", loss);
  options.distributed.sharding = sharding;
  run_on(3, options);
  CHECK(distance(scene.file("run/checkpoints/last"), scene.file("one/checkpoints/last")) <=
        kRounding);
  check_same_metrics(scene.file("run"), scene.file("one"), kRounding);
  const auto rounds = read_lines(scene.file("run/rounds.jsonl"));
  const auto alone = read_lines(scene.file("one/rounds.jsonl"));
  REQUIRE(rounds.size() == alone.size());
  for (std::size_t i = 0; i < rounds.size(); ++i) {
    CHECK(rounds[i]["samples"] == alone[i]["samples"]);
    CHECK(rounds[i]["questions"] == alone[i]["questions"]);
  }
}

// Ranks put past weights back at different times, and gather slices of one another in between.
TEST_CASE("past weights of all layers in slices write nothing", "[run]") {
  const NoSync no_sync;
  const RankScene scene;
  const std::string source = GENERATE("last", "past");
  auto options = scene.online_options("run", {{"type", "dpo"}});
  options.online.sources = R"([{"from": "policy", "n": 2}, {"from": ")" + source + R"(", "n": 2}])";
  options.distributed.sharding = Sharding::kWeights;
  const auto failures =
      ThreadRanks(2, options.distributed).troubles([&](const std::shared_ptr<Ranks>& ranks) {
        run_training(options, {}, {}, ranks);
      });
  for (const auto& failure : failures) {
    CHECK(text_of<ConfigError>(failure) ==
          "distributed.sharding: expected none, optimizer or gradients for the source '" + source +
              "' of a model without an adapter, got weights");
  }
}

}  // namespace
}  // namespace prefopt
