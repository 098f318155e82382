// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/checkpoint_parts.h"
#include "support/memory_limit.h"
#include "support/process.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

TEST_CASE("prefopt train: a signal saves, and the run continues in another process", "[cli]") {
  const int number = GENERATE(SIGINT, SIGTERM);
  const Config config("run", 1'000'000);
  const Process stopped(config.train());
  stopped.wait_for("step 1/1000000");
  stopped.signal(number);
  CHECK(stopped.wait() == 130);
  CHECK(stopped.out() == "");
  const std::string last = fs::canonical(config.run() + "/checkpoints/last").filename();
  const std::int64_t steps = std::stoll(last.substr(5));
  CHECK(stopped.err().ends_with("\nprefopt: stopped after step " + std::to_string(steps) +
                                ", which " + config.run() + "/checkpoints/" + last +
                                " holds; --resume auto continues\n"));

  const std::string total = "batch.steps=" + std::to_string(steps + 3);
  const Process resumed(config.train({"--set", total, "--resume", "auto"}));
  CHECK(resumed.wait() == 0);
  CHECK(resumed.err().find("resume: continues after step " + last.substr(5)) != std::string::npos);
  const Process straight(
      config.train({"--set", total, "--set", "output_dir=" + config.file("straight")}));
  CHECK(straight.wait() == 0);
  CHECK(differing(parts_of(config.run() + "/checkpoints/last"),
                  parts_of(config.file("straight/checkpoints/last")))
            .empty());
}

TEST_CASE("prefopt train: a second signal ends it at once", "[cli]") {
  const Config config("run", 10);
  // Rows that never come: the run cannot end by itself between the signals.
  REQUIRE(::mkfifo(config.file("rows").c_str(), 0600) == 0);
  const Process process(config.train({"--set", "data.train=" + config.file("rows")}));
  int writer = -1;  // to be had once there is a reader
  REQUIRE(comes_true([&] {
    writer = ::open(config.file("rows").c_str(), O_WRONLY | O_NONBLOCK);
    return writer >= 0;
  }));
  process.signal(SIGTERM);
  // Two at once would count as one.
  REQUIRE(comes_true([&] { return !is_pending(process.id(), SIGTERM); }));
  process.signal(SIGTERM);
  CHECK(process.wait() == 128 + SIGTERM);
  CHECK_FALSE(fs::exists(config.run() + "/checkpoints/last"));
  ::close(writer);
}

TEST_CASE("prefopt train: each kind of failure has its exit code", "[cli]") {
  const Config config("run", 3);
  const auto code_of = [&](
                           const std::vector<std::string>& more,
                           const std::function<void()>& before = [] {}) {
    const Process process(config.train(more), before);
    const int code = process.wait();
    CHECK(process.err().find("\nprefopt: ", process.err().rfind("\nprefopt: ") + 1) ==
          std::string::npos);
    return std::pair(code, process.err());
  };
  CHECK(code_of({}).first == 0);
  CHECK(code_of({"--resume", "auto"}).first == 0);
  CHECK(code_of({"--resume", "auto", "--set", "loss.beta=0.3"}).first == 2);
  CHECK(code_of({"--resume", "auto", "--dry-run"}).first == 2);
  CHECK(code_of({"--resume", config.file("none")}).first == 2);
  CHECK(code_of({"--set", "output_dir=" + config.file("3"), "--set",
                 "data.train=" + config.file("none")})
            .first == 3);
  write_text(config.run() + "/checkpoints/step-3/model.safetensors", "damaged");
  CHECK(code_of({"--resume", "auto"}).first == 4);
  const auto [non_finite, said] =
      code_of({"--set", "output_dir=" + config.file("5"), "--set", "optimizer.learning_rate=1e38",
               "--set", "batch.steps=20"});
  INFO(said);
  CHECK(non_finite == 5);
  CHECK(said.find("; see " + config.file("5/nonfinite/step-")) != std::string::npos);
  if (!kLimitsMemory) {
    WARN("SKIP: exit code 6, for a sanitizer has no memory limit");
    return;
  }
  const auto [memory, why] =
      code_of({"--set", "output_dir=" + config.file("6"), "--set", "batch.rows=20000", "--set",
               "model.decoder.intermediate_size=8192", "--set", "machine.checkpointing=none"},
              [] {
                constexpr rlim_t kBytes = rlim_t{4} << 30;
                const rlimit limit{kBytes, kBytes};
                ::setrlimit(RLIMIT_AS, &limit);
              });
  INFO(why);
  CHECK(memory == 6);
  CHECK(why.find("step 1: expected memory for 20000 pairs in micro-batches of up to ") !=
        std::string::npos);
}

}  // namespace
}  // namespace prefopt
