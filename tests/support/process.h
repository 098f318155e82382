// SPDX-License-Identifier: Apache-2.0
#pragma once

// The built command `prefopt` as a process, and a run for it.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/run_scene.h"
#include "support/small_decoder.h"
#include "support/temp_dir.h"
#include "support/text_files.h"
#include "support/wait.h"

namespace prefopt::testing_support {

/// A run of the built program.
class Process {
 public:
  /// `before` runs in the child, in front of the program.
  explicit Process(
      const std::vector<std::string>& arguments, const std::function<void()>& before = [] {}) {
    std::vector<std::string> words = {PREFOPT_CLI_PATH};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    child_ = ::fork();
    REQUIRE(child_ >= 0);
    if (child_ > 0) return;
    ::dup2(::open(folder_.file("out").c_str(), O_WRONLY | O_CREAT, 0600), STDOUT_FILENO);
    ::dup2(::open(folder_.file("err").c_str(), O_WRONLY | O_CREAT, 0600), STDERR_FILENO);
    before();
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }

  pid_t id() const { return child_; }
  void signal(int number) const { ::kill(child_, number); }

  /// The exit code, or minus the signal that ended it.
  int wait() const {
    int status = 0;
    REQUIRE(::waitpid(child_, &status, 0) == child_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  std::string out() const { return read_text(folder_.file("out")); }
  std::string err() const { return read_text(folder_.file("err")); }

  /// Waits until stderr has `text`.
  void wait_for(const std::string& text) const {
    const auto is_said = [&] {
      return std::filesystem::exists(folder_.file("err")) && err().find(text) != std::string::npos;
    };
    REQUIRE(comes_true([&] { return is_said() || !is_alive(child_); }));
    REQUIRE(is_said());
  }

 private:
  TempDir folder_;
  pid_t child_ = -1;
};

/// A config of a run of some steps on Scene's rows.
class Config {
 public:
  explicit Config(const std::string& run, std::int64_t steps) : run_(scene_.file(run)) {
    json_ = {{"output_dir", run_},
             {"loss", {{"type", "dpo"}}},
             {"model", {{"decoder", small_decoder()}}},
             {"data", {{"train", scene_.file("pairs.jsonl")}}},
             {"optimizer", {{"schedule", "constant"}}},
             {"batch", {{"steps", steps}, {"rows", 4}}},
             {"machine", {{"threads", 1}}}};
    write_text(scene_.file("run.json"), json_.dump());
  }

  std::vector<std::string> train(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> words = {"train", "--config", scene_.file("run.json")};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  const std::string& run() const { return run_; }
  std::string file(const std::string& name) const { return scene_.file(name); }

 private:
  Scene scene_;
  std::string run_;
  Json json_;
};

}  // namespace prefopt::testing_support
