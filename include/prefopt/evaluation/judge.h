// SPDX-License-Identifier: Apache-2.0
#pragma once

// Who wins: a policy's completions against a reference's, by a reward or by a program.

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

/// Says which of two completions of a prompt is the better one.
class PREFOPT_API Judge {
 public:
  virtual ~Judge() = default;
  virtual Verdict compare(const std::string& prompt, const std::string& first,
                          const std::string& second) = 0;
};

using Reward = std::function<double(const std::string& prompt, const std::string& completion)>;

/// The completion with the higher reward wins. Throws DataError for a reward that is not finite.
PREFOPT_API std::unique_ptr<Judge> make_reward_judge(Reward reward);

struct JudgeProgram {
  std::vector<std::string> command;  ///< program and arguments
  std::string name = {};             ///< in messages; empty: the program
  double timeout = 60;               ///< seconds that an answer may take
};

/// A program that gets a line of JSON, {"prompt": …, "a": …, "b": …}, and answers it by one,
/// {"winner": "a"}, "b" or "tie". It is started here, and ends at the end of its input. Throws
/// ConfigError where it cannot be started, and DataError, in `compare`, where it ends, lets an
/// answer wait for longer than `timeout`, or answers something else; it is not asked again then.
PREFOPT_API std::unique_ptr<Judge> make_program_judge(const JudgeProgram& program);

/// The same for a program that gets {"prompt": …, "completion": …} and answers {"reward": number}.
PREFOPT_API Reward make_program_reward(const JudgeProgram& program);

/// What a policy and a reference made of one prompt.
struct Contest {
  std::string prompt, policy, reference;
};

struct ContestResult {
  Estimate win_rate;  ///< of the policy: mean over the prompts of win 1, tie 1/2; Wilson's interval
  std::int64_t contests = 0;
  std::int64_t wins = 0, ties = 0, losses = 0;
  /// Contests whose two verdicts contradict each other: one order says the policy, the other the
  /// reference. They count as ties.
  std::int64_t inconsistent = 0;
};

/// Asks the judge about each contest twice, in both orders, so that a liking for one place cancels:
/// a contest is won where the two verdicts together speak for the policy, and tied where they are
/// even. Equal completions are a tie, without a question. Throws DataError for no contest.
PREFOPT_API ContestResult judge_contests(Judge& judge, const std::vector<Contest>& contests);

}  // namespace prefopt
