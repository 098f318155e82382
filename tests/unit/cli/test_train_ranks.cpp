// SPDX-License-Identifier: Apache-2.0
// Several processes that train together, started as by a shell and by `prefopt launch`.

#include <csignal>
#include <filesystem>
#include <fstream>
#include <regex>
#include <string>
#include <vector>

#include "prefopt/dist/ranks.h"
#include "support/catch.h"
#include "support/checkpoint_distance.h"
#include "support/process.h"
#include "support/rank_processes.h"
#include "support/run_scene.h"

namespace prefopt {
namespace {

namespace fs = std::filesystem;
using namespace testing_support;

/// Options that make the bits of a run depend on its ranks by rounding alone.
std::vector<std::string> in_float64(const Config& config, const std::string& run) {
  return config.train({"--set", "model.dtype=float64", "--set", "output_dir=" + config.file(run)});
}

bool skips_ranks() {
  if (!has_ranks()) WARN("SKIP: a build without ranks");
  return !has_ranks();
}

TEST_CASE("prefopt train: two processes of a shell are one run", "[cli]") {
  if (skips_ranks()) return;
  const Config config("run", 4);
  const Process alone(in_float64(config, "one"));
  const RankProcesses ranks(2, in_float64(config, "run"));
  CHECK(ranks.wait() == std::vector{0, 0});
  REQUIRE(alone.wait() == 0);
  INFO(ranks[0].err());
  CHECK(distance(config.file("run/checkpoints/last"), config.file("one/checkpoints/last")) <=
        1e-12);
  CHECK(ranks[0].out().starts_with("checkpoint: "));
  CHECK(ranks[0].err().find("step 4/4") != std::string::npos);
  CHECK(ranks[1].out() == "");
  CHECK(ranks[1].err() == "");
  const Json environment = Json::parse(read_text(config.file("run/env.json")));
  CHECK(environment["ranks"] == 2);
  CHECK(environment["launcher"] == "shell");
  CHECK(environment["backend"] == "gloo");
}

TEST_CASE("prefopt train: a rank that is killed is named, and nothing is lost", "[cli]") {
  if (skips_ranks()) return;
  const Config config("run", 1'000'000);
  const RankProcesses ranks(3, config.train());
  ranks[0].wait_for("step 1/1000000");
  ranks[1].signal(SIGKILL);
  CHECK(ranks.wait() == std::vector{1, -SIGKILL, 1});
  for (const int rank : {0, 2}) {
    const std::string said = ranks[rank].err();
    INFO(said);
    CHECK(std::regex_search(
        said,
        std::regex(
            "prefopt: rank " + std::to_string(rank) +
            ": expected a [a-z ]+ of all 3 ranks, got '.*'; no word from rank 1, which has ended, "
            "hangs or still computes\n$")));
  }
  // Rank 0 has saved what was done.
  const std::string last = fs::canonical(config.run() + "/checkpoints/last").filename();
  CHECK(ranks[0].err().find("step " + last.substr(5) + " is saved in ") != std::string::npos);
}

TEST_CASE("prefopt train: a signal to one rank stops all at the same step", "[cli]") {
  if (skips_ranks()) return;
  const Config config("run", 1'000'000);
  const RankProcesses ranks(2, config.train());
  ranks[0].wait_for("step 1/1000000");
  ranks[1].signal(SIGTERM);
  CHECK(ranks.wait() == std::vector{130, 130});
  const std::string last = fs::canonical(config.run() + "/checkpoints/last").filename();
  CHECK(ranks[0].err().ends_with("\nprefopt: stopped after step " + last.substr(5) + ", which " +
                                 config.run() + "/checkpoints/" + last +
                                 " holds; --resume auto continues\n"));
  CHECK(ranks[1].err() == "");
}

TEST_CASE("prefopt train: rank 0 says what another rank refuses", "[cli]") {
  if (skips_ranks()) return;
  const Config config("run", 4);
  const RankProcesses ranks(2, config.train(), {"--set", "data.train=" + config.file("none")}, 1);
  CHECK(ranks.wait() == std::vector{3, 3});
  CHECK(ranks[0].err().find("prefopt: rank 1: " + config.file("none") + ": expected a ") !=
        std::string::npos);
  CHECK(ranks[1].err() == "");
  CHECK_FALSE(fs::exists(config.run()));
}

TEST_CASE("prefopt train: a config that is at fault is said once", "[cli]") {
  if (skips_ranks()) return;
  const Config config("run", 4);
  const auto refused = [&](const std::vector<std::string>& more, int only) {
    const RankProcesses ranks(2, config.train(), more, only);
    CHECK(ranks.wait() == std::vector{2, 2});
    CHECK(ranks[1].err() == "");
    return ranks[0].err();
  };
  const std::string by_all = refused({"--set", "batch.rows=none"}, -1);
  CHECK(by_all.starts_with("prefopt: "));
  CHECK(by_all.find("rank") == std::string::npos);
  CHECK(refused({"--set", "batch.rows=none"}, 1) == "prefopt: rank 1: " + by_all.substr(9));
  CHECK(
      refused({"--set", "distributed.order=tree", "--set", "distributed.sharding=weights"}, 1)
          .starts_with("prefopt: rank 1: distributed.order: expected order fast with sharding, "));
}

TEST_CASE("prefopt launch: starts ranks again when a signal has ended one", "[cli]") {
  if (skips_ranks()) return;
  const Config config("run", 60);
  std::vector<std::string> words = {"launch", "--ranks", "2", "--max-restarts", "1", "--"};
  const auto train = in_float64(config, "run");
  words.insert(words.end(), train.begin(), train.end());
  words.insert(words.end(), {"--set", "checkpoint.every=1"});
  const Process launch(words);
  launch.wait_for("step 3/60");
  // Rank 1 is the process's second child.
  const std::string id = std::to_string(launch.id());
  std::ifstream children("/proc/" + id + "/task/" + id + "/children");
  pid_t first = 0;
  pid_t second = 0;
  children >> first >> second;
  REQUIRE(second > 0);
  ::kill(second, SIGKILL);
  const int code = launch.wait();
  const std::string said = launch.err();
  INFO(said);
  CHECK(code == 0);
  CHECK(said.find("prefopt launch: rank 1 was ended by signal 9 (Killed)\n"
                  "prefopt launch: starts all ranks again, restart 1 of 1\n") != std::string::npos);
  CHECK(said.find("resume: continues after step ") != std::string::npos);
  const Process alone(in_float64(config, "one"));
  REQUIRE(alone.wait() == 0);
  CHECK(distance(config.file("run/checkpoints/last"), config.file("one/checkpoints/last")) <=
        1e-10);
}

TEST_CASE("prefopt launch: refuses what it cannot start, and passes codes on", "[cli]") {
  const auto refused = [](const std::vector<std::string>& more) {
    std::vector<std::string> words = {"launch"};
    words.insert(words.end(), more.begin(), more.end());
    const Process process(words);
    const int code = process.wait();
    return std::pair(code, process.err());
  };
  CHECK(refused({"--ranks", "2", "--", "score", "--model", "m"}) ==
        std::pair(2, std::string("prefopt: launch: expected train and its options after --, got "
                                 "'score'\n")));
  CHECK(refused({"--ranks", "0", "--", "train"}).first == 2);
  CHECK(refused({"--ranks", "2"}).first == 2);
  if (skips_ranks()) return;
  const auto [code, said] = refused({"--ranks", "2", "--", "train", "--config", "/none.json"});
  CHECK(code == 2);
  CHECK(said.find("/none.json: expected a readable file") != std::string::npos);
}

}  // namespace
}  // namespace prefopt
