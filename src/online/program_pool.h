// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "prefopt/evaluation/judge.h"

namespace prefopt::detail {

/// How the answers to a kind of question look.
struct AnswerForm {
  std::string_view kind;      ///< of the program, for messages
  std::string_view expected;  ///< the same of its answers
  /// Returns the number that an answer says, NaN where it says null; nothing for another answer.
  std::optional<double> (*read)(const Json& answer);
};

struct PoolOptions {
  JudgeProgram program;
  std::int64_t workers = 1;  ///< processes that answer at once
  std::int64_t retries = 0;  ///< of a question that a worker dies of or does not answer in time
  std::int64_t max_failures = 0;  ///< questions without an answer that are accepted, over all calls
};

/// Processes of one program that share questions. Each is sent up to kMostAhead questions before
/// its answers are read, one at first; a worker that fails is started again.
class ProgramPool {
 public:
  static constexpr std::size_t kMostAhead = 64;

  /// Starts the workers. Throws ConfigError if they cannot be started.
  ProgramPool(const PoolOptions& options, const AnswerForm& form);
  ~ProgramPool();

  /// Returns the answers to lines of JSON, in their order; NaN: none. Throws DataError for more
  /// failures than max_failures, with the last line that was no answer, and for lines that no
  /// question asked for.
  std::vector<double> ask(const std::vector<std::string>& questions);

  /// Questions without an answer, over all calls.
  std::int64_t failures() const { return failures_; }
  void set_failures(std::int64_t failures) { failures_ = failures; }

 private:
  class Worker;
  class Batch;

  AnswerForm form_;
  std::int64_t retries_, max_failures_;
  std::int64_t failures_ = 0;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace prefopt::detail
