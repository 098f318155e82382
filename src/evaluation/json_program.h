// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include "core/json.h"
#include "core/subprocess.h"
#include "prefopt/evaluation/judge.h"

namespace prefopt::detail {

/// The names in messages of programs that compare two completions, and that rate one.
inline constexpr std::string_view kJudge = "judge";
inline constexpr std::string_view kRewardProgram = "reward program";

/// A program that answers lines of JSON.
class JsonProgram {
 public:
  /// Starts it. `kind` is what messages call it. Throws ConfigError if it cannot be started, or for
  /// an invalid time limit.
  JsonProgram(JudgeProgram program, std::string_view kind);

  /// Throws DataError in place of an answer that is no JSON or does not come.
  Json ask(const Json& question);
  [[noreturn]] void refuse(std::string_view expected, const Json& answer) const;

  /// Many questions at a time, as lines: see LineProcess, which throws ProcessFailure.
  void send(std::string_view line) { process_->send(line); }
  std::string receive() { return process_->receive(limit_); }
  void expect_no_more() const { process_->expect_no_more(); }
  /// Ends the program and starts it again: it has then been asked nothing.
  void restart();

  /// "judge 'name'" of the kind "judge", for messages.
  std::string where() const;

 private:
  JudgeProgram program_;
  std::string kind_;
  std::chrono::milliseconds limit_;
  std::unique_ptr<LineProcess> process_;
};

}  // namespace prefopt::detail
