// SPDX-License-Identifier: Apache-2.0

// Each example is short, runs, and does what it says.

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <regex>
#include <string>

#include "prefopt/decoder/decoder.h"
#include "support/catch.h"
#include "support/temp_dir.h"

namespace prefopt {
namespace {

using testing_support::TempDir;

struct Finished {
  int exit_code;
  std::string output;
};

Finished run(const std::string& program, const std::string& arguments, const TempDir& folder) {
  const std::string command = "cd '" + folder.path() + "' && TMPDIR='" + folder.path() + "' '" +
                              PREFOPT_EXAMPLES_DIR "/" + program + "' " + arguments + " 2>&1";
  FILE* pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string output;
  std::array<char, 4096> buffer;
  while (const std::size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    output.append(buffer.data(), got);
  }
  const int status = ::pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
}

int count(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  return static_cast<int>(
      std::distance(std::sregex_iterator(text.begin(), text.end(), regex), std::sregex_iterator()));
}

TEST_CASE("train_dpo trains and leaves a model that loads", "[examples]") {
  const TempDir folder;
  const Finished finished = run("example_train_dpo", "", folder);
  INFO(finished.output);
  REQUIRE(finished.exit_code == 0);
  CHECK(count(finished.output, "step +[0-9]+ ") == 20);
  // The policy is its own reference at the first step.
  CHECK(count(finished.output, "step +1  loss 0\\.6931  margin \\+0\\.0000") == 1);
  CHECK(Decoder::load(folder.file("train_dpo-out"))->vocab_size() == 259);

  const Finished missing = run("example_train_dpo", "nowhere rows.jsonl out", folder);
  CHECK(missing.exit_code == 1);
  CHECK(missing.output ==
        "nowhere/config.json: expected a readable file, got No such file or directory\n");
}

TEST_CASE("train_hypo samples at each step", "[examples]") {
  const TempDir folder;
  const Finished finished = run("example_train_hypo", "5", folder);
  INFO(finished.output);
  REQUIRE(finished.exit_code == 0);
  CHECK(count(finished.output, "KL on fresh samples [+-][0-9.]+ nats") == 5);
  CHECK(count(finished.output, "step +1 .*KL on fresh samples \\+0\\.0000 nats") == 1);
}

TEST_CASE("train_vpo learns from fresh pairs", "[examples]") {
  const TempDir folder;
  const Finished finished = run("example_train_vpo", "5", folder);
  INFO(finished.output);
  REQUIRE(finished.exit_code == 0);
  CHECK(count(finished.output, "reward of fresh answers") == 5);
}

TEST_CASE("custom_loss passes its own check", "[examples]") {
  const TempDir folder;
  const Finished finished = run("example_custom_loss", "", folder);
  INFO(finished.output);
  CHECK(finished.exit_code == 0);
  CHECK(count(finished.output, "gradient arrives\nall checks hold\n") == 1);
}

TEST_CASE("own_objective passes its own checks", "[examples]") {
  const TempDir folder;
  const Finished finished = run("example_own_objective", "", folder);
  INFO(finished.output);
  CHECK(finished.exit_code == 0);
  CHECK(count(finished.output, "gradient arrives\nall checks hold\n") == 1);
}

TEST_CASE("losses_on_eigen reaches the closed form", "[examples]") {
  const TempDir folder;
  const Finished finished = run("example_losses_on_eigen", "", folder);
  INFO(finished.output);
  CHECK(finished.exit_code == 0);
}

}  // namespace
}  // namespace prefopt
