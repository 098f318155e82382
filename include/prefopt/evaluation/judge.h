// SPDX-License-Identifier: Apache-2.0
#pragma once

// Contests of a policy's completions with a reference's, decided by a reward or a program.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/evaluation/statistics.h"
#include "prefopt/export.h"

namespace prefopt {

enum class Verdict { kFirst, kSecond, kTie };

/// Decides which of two completions of a prompt is the better one.
class PREFOPT_API Judge {
 public:
  virtual ~Judge() = default;
  virtual Verdict compare(const std::string& prompt, const std::string& first,
                          const std::string& second) = 0;
};

using Reward = std::function<double(const std::string& prompt, const std::string& completion)>;

/// Returns a judge that prefers the higher reward. It throws DataError for a reward that is not
/// finite.
PREFOPT_API std::unique_ptr<Judge> make_reward_judge(Reward reward);

struct JudgeProgram {
  std::vector<std::string> command;  ///< program and arguments
  std::string name = {};             ///< in messages; empty: the program
  double timeout = 60;               ///< seconds that an answer may take
};

/// Starts a program that reads lines of JSON, {"prompt": …, "a": …, "b": …}, and answers each with
/// a line {"winner": "a"}, "b" or "tie"; it ends at the end of its input. Throws ConfigError if it
/// cannot be started. `compare` throws DataError if the program ends, takes longer than `timeout`
/// or gives another answer; it is not asked again.
PREFOPT_API std::unique_ptr<Judge> make_program_judge(const JudgeProgram& program);

/// Starts a program that reads {"prompt": …, "completion": …} and answers {"reward": number}.
PREFOPT_API Reward make_program_reward(const JudgeProgram& program);

/// One prompt and its completions by policy and reference.
struct Contest {
  std::string prompt, policy, reference;
};

struct ContestResult {
  Estimate win_rate;  ///< of the policy: mean over the prompts of win 1, tie 1/2; Wilson's interval
  std::int64_t contests = 0;
  std::int64_t wins = 0, ties = 0, losses = 0;
  /// Contests whose two verdicts contradict each other: one order favours the policy, the other the
  /// reference. They count as ties.
  std::int64_t inconsistent = 0;
};

/// Asks the judge about each contest twice, in both orders, so that a bias for one position
/// cancels: a contest is won if the two verdicts together favour the policy, and tied if they are
/// even. Equal completions are a tie, without a question. Throws DataError for no contests.
PREFOPT_API ContestResult judge_contests(Judge& judge, const std::vector<Contest>& contests);

}  // namespace prefopt
