// SPDX-License-Identifier: Apache-2.0
#pragma once

// Runs the built command `prefopt`.

#include <sys/wait.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/command_server.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace prefopt::testing_support {

struct CliResult {
  int code;
  std::string out, err;
};

/// Runs the command in a process that has LibTorch loaded already.
inline CliResult run_cli(const std::vector<std::string>& arguments) {
  const TempDir folder;
  const std::string out = folder.file("out"), err = folder.file("err");
  const int status = run_on_command_server(arguments, out, err);
  REQUIRE(WIFEXITED(status));
  return {WEXITSTATUS(status), read_text(out), read_text(err)};
}

/// Runs the program itself, `before` in front of it. None of the arguments holds a single quote.
/// Threads that wait do not spin, so that many short runs do not take each other's time.
inline CliResult run_cli_program(const std::vector<std::string>& arguments,
                                 const std::string& before = "OMP_WAIT_POLICY=passive") {
  const TempDir folder;
  std::string command = before + " " + PREFOPT_CLI_PATH;
  for (const std::string& argument : arguments) {
    REQUIRE(argument.find('\'') == std::string::npos);
    command += " '" + argument + "'";
  }
  command += " >" + folder.file("out") + " 2>" + folder.file("err") + " </dev/null";
  const int status = std::system(command.c_str());
  REQUIRE(WIFEXITED(status));
  return {WEXITSTATUS(status), read_text(folder.file("out")), read_text(folder.file("err"))};
}

inline nlohmann::json cli_json(const std::vector<std::string>& arguments) {
  const CliResult result = run_cli(arguments);
  INFO(result.err);
  REQUIRE(result.code == 0);
  return nlohmann::json::parse(result.out);
}

inline std::vector<nlohmann::json> json_lines(const std::string& text) {
  std::vector<nlohmann::json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

/// Checks that the command fails with one sentence and nothing on stdout.
inline void check_cli_refused(const std::vector<std::string>& arguments, int code,
                              const std::string& sentence) {
  const CliResult result = run_cli(arguments);
  CHECK(result.err == "prefopt: " + sentence + "\n");
  CHECK(result.code == code);
  CHECK(result.out == "");
}

}  // namespace prefopt::testing_support
