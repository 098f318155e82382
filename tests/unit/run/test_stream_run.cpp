// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/run/run.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

using namespace testing_support;

/// A run over 40 rows in two files, one of them taken one and a half times, that saves each step.
class StreamScene {
 public:
  StreamScene() {
    ControlledTask task({.seed = 5});
    task.write_preferences(scene_.file("a.jsonl"), 24);
    task.write_preferences(scene_.file("b.jsonl"), 16);
    task.write_preferences(scene_.file("held-out.jsonl"), 6);
  }

  RunOptions options(const std::string& run, std::int64_t steps) const {
    RunOptions options = scene_.options(run, "dpo");
    options.data.train = R"([")" + scene_.file("a.jsonl") + R"(", {"path": ")" +
                         scene_.file("b.jsonl") + R"(", "weight": 1.5}])";
    options.data.eval = scene_.file("held-out.jsonl");
    options.data.eval_fraction = 0;
    options.data.stream.buffer = 10;
    options.batch.steps = steps;
    options.batch.rows = 5;
    options.machine.threads = 1;
    options.checkpoint.every = 1;
    options.checkpoint.keep_last = 0;
    return options;
  }

  std::string file(const std::string& name) const { return scene_.file(name); }

 private:
  Scene scene_;
};

std::string state_of(const std::string& checkpoint) {
  return bytes_of(checkpoint + "/training_state.safetensors");
}

}  // namespace

TEST_CASE("a run on a stream resumes to the bit after any step", "[run]") {
  const StreamScene scene;
  // An epoch has 48 rows: step 10 ends in the second one.
  constexpr std::int64_t kSteps = 14;
  run_training(scene.options("whole", kSteps));
  CHECK(bytes_of(scene.file("whole/report.html")).find(", read as a stream") != std::string::npos);
  const std::string last = "/checkpoints/step-" + std::to_string(kSteps);
  for (const std::int64_t stop : {1, 4, 8, 9, 10, 11}) {
    INFO("after step " << stop);
    const std::string name = "from-" + std::to_string(stop);
    run_training(scene.options(name, kSteps), {},
                 scene.file("whole/checkpoints/step-" + std::to_string(stop)));
    CHECK((state_of(scene.file(name + last)) == state_of(scene.file("whole" + last))));
    CHECK((bytes_of(scene.file(name + last + "/model.safetensors")) ==
           bytes_of(scene.file("whole" + last + "/model.safetensors"))));
  }
}

TEST_CASE("micro-batches of a stream change no row of it", "[run]") {
  const StreamScene scene;
  RunOptions cut = scene.options("cut", 6);
  cut.batch.micro_rows = 2;
  run_training(scene.options("whole", 6));
  run_training(cut);
  const auto whole = untimed(scene.file("whole"));
  const auto parts = untimed(scene.file("cut"));
  REQUIRE(whole.size() == parts.size());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    CHECK(whole[i].value("epoch", 0.0) == parts[i].value("epoch", 0.0));
    CHECK(whole[i].value("num_tokens", 0.0) == parts[i].value("num_tokens", 0.0));
    CHECK(std::abs(whole[i].value("loss", 0.0) - parts[i].value("loss", 0.0)) < 1e-5);
  }
}

TEST_CASE("a stream is resumed with the same files, weights and buffer", "[run]") {
  const StreamScene scene;
  run_training(scene.options("run", 2));
  const std::string from = scene.file("run/checkpoints/step-2");
  const auto refusal = [&](const RunOptions& options) {
    try {
      run_training(options, {}, from);
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  RunOptions other = scene.options("other", 2);
  other.data.stream.buffer = 11;
  CHECK(refusal(other).find("data.stream.buffer: 10 -> 11") != std::string::npos);
  other = scene.options("other", 2);
  other.data.train.replace(other.data.train.find("1.5"), 3, "2.5");
  CHECK(refusal(other).find("other rows to train on (data.train ") != std::string::npos);
  put(scene.file("b.jsonl"), bytes_of(scene.file("b.jsonl")) + bytes_of(scene.file("a.jsonl")));
  CHECK(refusal(scene.options("other", 2)).find("other rows to train on (data.train ") !=
        std::string::npos);
}

TEST_CASE("options that need all rows at once are refused with a stream", "[run]") {
  const StreamScene scene;
  struct Case {
    void (*change)(RunOptions&);
    const char* text;
  };
  const Case cases[] = {
      {[](RunOptions& o) { o.data.eval_fraction = 0.1; },
       "data.eval_fraction: expected 0 with data.stream, as the end of the files is not known; "
       "data.eval names held-out rows"},
      {[](RunOptions& o) { o.data.duplicate = RowAction::kDrop; },
       "data.duplicate: expected 'keep' with data.stream, as a row is not compared with those "
       "before "
       "it"},
      {[](RunOptions& o) { o.data.max_rows = 5; },
       "data.max_rows: expected 0 with data.stream, as batch.steps says how many rows are read"},
      {[](RunOptions& o) { o.data.token_cache = "cache"; },
       "data.token_cache: expected '' with data.stream, as no file is tokenized as a whole"},
      {[](RunOptions& o) { o.batch.steps = 0; },
       "batch.steps: expected a number of steps with data.stream, got 0; how many rows an epoch "
       "has "
       "is not known"},
      {[](RunOptions& o) {
         o.data.eval = "";
         o.data.columns = R"({"system": "sistem"})";
       },
       "data.train: expected a column 'sistem', which data.columns.system names, got no row that "
       "has it"},
  };
  for (const Case& c : cases) {
    RunOptions options = scene.options("run", 3);
    c.change(options);
    CHECK_THROWS_TEXT(run_training(options), ConfigError, c.text);
  }
}

TEST_CASE("rows of a stream have the policies of the options, and are noted", "[run]") {
  const StreamScene scene;
  const std::string good = bytes_of(scene.file("b.jsonl"));
  put(scene.file("b.jsonl"), "{\"prompt\": 1}\n" + good.substr(0, good.find('\n') + 1) + "3\n");
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  const std::string b = scene.file("b.jsonl");
  RunOptions options = scene.options("dropped", 12);
  run_training(options, events);
  CHECK(count_containing(notes, "data.train: dropped a row: ") == 2);
  CHECK(count_containing(notes, "(" + b + ":3); further ones are counted") == 1);
  CHECK(count_containing(notes, "data.train: of ") >= 2);

  options = scene.options("refused", 12);
  options.data.unusable = RowAction::kError;
  try {
    run_training(options);
    FAIL("no error");
  } catch (const DataError& error) {
    CHECK(std::string(error.what()).starts_with(b + ":"));
  }

  put(scene.file("a.jsonl"), "1\n");
  put(b, "2\n3\n");
  options = scene.options("none", 3);
  options.data.train = b;
  CHECK_THROWS_TEXT(run_training(options), DataError,
                    "data.train: expected a usable row, got none in 2 read; dropped: expected an "
                    "object");
}

TEST_CASE("prompts that are held out do not train where the options say so", "[run]") {
  const StreamScene scene;
  put(scene.file("held-out.jsonl"), bytes_of(scene.file("b.jsonl")));
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  RunOptions options = scene.options("run", 8);
  options.data.leak = RowAction::kDrop;
  run_training(options, events);
  CHECK(count_containing(notes, "data.train: dropped a row: prompt of a held-out row (") == 1);
  options = scene.options("refused", 8);
  options.data.leak = RowAction::kError;
  CHECK_THROWS_AS(run_training(options), DataError);
}

TEST_CASE("weights of files say how often an epoch has their rows", "[run]") {
  const StreamScene scene;
  RunOptions options = scene.options("weighted", 3);
  options.data.stream.buffer = 0;
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  run_training(options, events);
  const Json facts = read_lines(scene.file("weighted/metrics.jsonl")).back();
  // 24 + 1.5 · 16 rows an epoch, five of them a step.
  CHECK(facts.at("epoch") == 15.0 / 48);
  CHECK(count_containing(notes, "40 of 40 rows of [") == 1);

  options = scene.options("again", 3);
  options.data.stream.buffer = 0;
  options.data.train.replace(options.data.train.find("1.5"), 3, "2.5");
  CHECK_THROWS_AS(run_training(options, {}, scene.file("weighted/checkpoints/step-3")),
                  ConfigError);
}

}  // namespace prefopt
