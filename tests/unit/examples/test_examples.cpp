// SPDX-License-Identifier: Apache-2.0

// Each example is short, runs, and does what it says.

#include <fmt/format.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <string>

#include "prefopt/decoder/decoder.h"
#include "support/catch.h"
#include "support/files.h"
#include "support/temp_dir.h"

namespace prefopt {
namespace {

using testing_support::bytes_of;
using testing_support::put;
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

TEST_CASE("losses_on_eigen reaches the closed form", "[examples]") {
  const TempDir folder;
  const Finished finished = run("example_losses_on_eigen", "", folder);
  INFO(finished.output);
  CHECK(finished.exit_code == 0);
}

int lines_of(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  int lines = 0;
  while (std::getline(file, line)) ++lines;
  return lines;
}

/// Settings of `rounds` steps of the demo on a model of random weights.
std::string demo_settings(int rounds) {
  return R"({"chat_format": "dialogue", "prompts_per_round": 4, "samples_per_prompt": 4,
             "min_reward_gap": 1e-9, "lora": {"r": 2},
             "run": {"train": {"save_every": 1, "steps": )" +
         std::to_string(rounds) + R"(}, "optimizer": {"schedule": "constant"},
                     "sampling": {"max_new_tokens": 16}}})";
}

TEST_CASE("The demo trains on its own answers and keeps what it shows", "[examples]") {
  const TempDir folder;
  at::manual_seed(1);
  Decoder({.hidden_size = 32,
           .intermediate_size = 48,
           .num_hidden_layers = 2,
           .num_attention_heads = 4,
           .num_key_value_heads = 2})
      .save(folder.file("model"));
  std::string prompts;
  for (int i = 0; i < 8; ++i) prompts += fmt::format("{{\"prompt\": \"Question {}?\"}}\n", i);
  put(folder.file("prompts.jsonl"), prompts);
  const auto train = [&](int rounds, const std::string& out) {
    put(folder.file("config.json"), demo_settings(rounds));
    return run("prefopt_demo",
               "--model model --config config.json --prompts prompts.jsonl --out " + out, folder);
  };

  const Finished finished = train(2, "out");
  INFO(finished.output);
  const int gained = count(finished.output, "the reward did not rise: ") == 0 ? 0 : 1;
  REQUIRE(finished.exit_code == gained);
  CHECK(count(finished.output, "6 prompts to train on, 2 held out") == 1);
  CHECK(count(finished.output, "round [12]/2: reward 0\\.[0-9]+ on fresh responses") == 2);
  CHECK(count(finished.output, "» Question [37]\\?") == 2);
  CHECK(lines_of(folder.file("out/answers.jsonl")) == 2);
  CHECK(lines_of(folder.file("out/pairs.jsonl")) >= 2);
  CHECK(lines_of(folder.file("out/metrics.jsonl")) == 2);
  CHECK(lines_of(folder.file("out/result.json")) == 1);
  Decoder::load(folder.file("model"))->load_adapter(folder.file("out/adapter"));

  // A run that is resumed ends as one without a break.
  train(1, "resumed");
  const Finished resumed = train(2, "resumed");
  INFO(resumed.output);
  CHECK(count(resumed.output, "resume: goes on after step 1 of 2") == 1);
  for (const std::string file :
       {"pairs.jsonl", "answers.jsonl", "result.json", "adapter/adapter_model.safetensors"}) {
    INFO(file);
    CHECK(bytes_of(folder.file("out/" + file)) == bytes_of(folder.file("resumed/" + file)));
  }

  put(folder.file("prompts.jsonl"), "{\"prompt\": 3}\n");
  const Finished wrong = train(2, "wrong");
  CHECK(wrong.exit_code == 2);
  CHECK(wrong.output == "prompts.jsonl:1: expected 'prompt' to be text, got a number\n");
}

TEST_CASE("The demo's prompts are distinct", "[examples]") {
  std::ifstream file(PREFOPT_TEST_DATA_DIR "/../../examples/demo/prompts.jsonl");
  std::set<std::string> distinct;
  int rows = 0;
  for (std::string line; std::getline(file, line); ++rows) distinct.insert(line);
  CHECK(rows == 192);
  CHECK(distinct.size() == 192);
}

}  // namespace
}  // namespace prefopt
