// SPDX-License-Identifier: Apache-2.0
#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/run/run.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/pretend_device.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

using namespace testing_support;

void check_near(const std::vector<Json>& got, const std::vector<Json>& expected) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    for (const auto& [key, value] : expected[i].items()) {
      INFO(key);
      if (value.is_number()) {
        CHECK(got[i].at(key).get<double>() ==
              Approx(value.get<double>()).epsilon(1e-8).margin(1e-8));
      } else {
        CHECK(got[i].at(key) == value);
      }
    }
  }
}

RunOptions with_device(RunOptions options, const std::string& device) {
  options.model.device = device;
  options.model.dtype = "float64";
  options.optimizer.schedule = Schedule::kConstant;  // whose length may change
  return options;
}

}  // namespace

TEST_CASE("a run on a device is that of the CPU, samples included", "[run][device]") {
  const Scene scene;
  const std::string type = GENERATE("dpo", "sft");
  auto there = with_device(scene.evaluated("there", type, 4, 2, 2), "pretend");
  auto here = with_device(scene.evaluated("here", type, 4, 2, 2), "cpu");
  const RunResult result = run_training(there);
  run_training(here);
  CHECK(result.policy->device() == pretend_device());
  check_near(untimed(scene.file("there")), untimed(scene.file("here")));
  check_near(read_lines(scene.file("there/samples.jsonl")),
             read_lines(scene.file("here/samples.jsonl")));
  // The config says what was asked for.
  const auto config = [&](const std::string& run) {
    return Json::parse(read_text(scene.file(run) + "/config.json"));
  };
  CHECK(config("there")["model"]["device"] == "pretend:0");
  CHECK_FALSE(config("here")["model"].contains("device"));
}

TEST_CASE("a run resumes on another device", "[run][device]") {
  const Scene scene;
  const bool to_cpu = GENERATE(true, false);
  const std::string from = to_cpu ? "pretend" : "cpu", to = to_cpu ? "cpu" : "pretend";
  run_training(with_device(scene.evaluated("whole", "dpo", 4, 2, 2), "cpu"));
  run_training(with_device(scene.evaluated("first", "dpo", 2, 2, 2), from));
  std::vector<std::string> notes;
  RunEvents events;
  events.note = [&](const std::string& line) { notes.push_back(line); };
  run_training(with_device(scene.evaluated("second", "dpo", 4, 2, 2), to), events,
               scene.file("first"));
  const auto whole = untimed(scene.file("whole")), rest = untimed(scene.file("second"));
  check_near({rest.back()}, {whole.back()});
  CHECK(count_containing(notes, "model.device") == 1);
}

TEST_CASE("a run refuses a device that is not there before it reads anything", "[run][device]") {
  const Scene scene;
  auto options = with_device(scene.options("run", "dpo"), "pretend:3");
  options.data.train = scene.file("none.jsonl");
  CHECK_THROWS_TEXT(run_training(options), DeviceError,
                    "model.device: expected a device that LibTorch can use, got 'pretend:3' where "
                    "it has 1 of that type; cpu runs everywhere");
  options.model.device = "tpu";
  CHECK_THROWS_TEXT(run_training(options), ConfigError,
                    "model.device: expected cpu, cuda, cuda:N or auto, got 'tpu'");
}

}  // namespace prefopt
