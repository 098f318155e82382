// SPDX-License-Identifier: Apache-2.0
#include "prefopt/evaluation/judge.h"

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <utility>

#include "core/json.h"
#include "evaluation/json_program.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::Json;
using detail::JsonProgram;

class ProgramJudge final : public Judge {
 public:
  explicit ProgramJudge(const JudgeProgram& program) : program_(program, detail::kJudge) {}

  Verdict compare(const std::string& prompt, const std::string& first,
                  const std::string& second) override {
    const Json answer = program_.ask({{"prompt", prompt}, {"a", first}, {"b", second}});
    const Json* winner =
        answer.is_object() && answer.contains("winner") ? &answer["winner"] : nullptr;
    if (winner != nullptr && *winner == "a") return Verdict::kFirst;
    if (winner != nullptr && *winner == "b") return Verdict::kSecond;
    if (winner != nullptr && *winner == "tie") return Verdict::kTie;
    program_.refuse(R"({"winner": "a", "b" or "tie"})", answer);
  }

 private:
  JsonProgram program_;
};

class RewardJudge final : public Judge {
 public:
  explicit RewardJudge(Reward reward) : reward_(std::move(reward)) {}

  Verdict compare(const std::string& prompt, const std::string& first,
                  const std::string& second) override {
    const double first_reward = finite_reward(prompt, first);
    const double second_reward = finite_reward(prompt, second);
    if (first_reward == second_reward) return Verdict::kTie;
    return first_reward > second_reward ? Verdict::kFirst : Verdict::kSecond;
  }

 private:
  // A completion is asked about once, though it is compared in both orders.
  double finite_reward(const std::string& prompt, const std::string& completion) {
    const auto known = known_.find({prompt, completion});
    if (known != known_.end()) return known->second;
    const double value = reward_(prompt, completion);
    if (!std::isfinite(value)) {
      throw DataError(fmt::format("reward: expected a finite number, got {}", value));
    }
    return known_[{prompt, completion}] = value;
  }

  Reward reward_;
  std::map<std::pair<std::string, std::string>, double> known_;
};

/// 1 for the policy, -1 for the reference.
int vote(Verdict verdict, Verdict policy) {
  if (verdict == Verdict::kTie) return 0;
  return verdict == policy ? 1 : -1;
}

}  // namespace

std::unique_ptr<Judge> make_program_judge(const JudgeProgram& program) {
  return std::make_unique<ProgramJudge>(program);
}

std::unique_ptr<Judge> make_reward_judge(Reward reward) {
  return std::make_unique<RewardJudge>(std::move(reward));
}

Reward make_program_reward(const JudgeProgram& program) {
  // Shared, as a std::function has to be one that can be copied.
  const auto rewards = std::make_shared<JsonProgram>(program, detail::kRewardProgram);
  return [rewards](const std::string& prompt, const std::string& completion) {
    const Json answer = rewards->ask({{"prompt", prompt}, {"completion", completion}});
    if (!answer.is_object() || !answer.contains("reward") || !answer["reward"].is_number() ||
        !std::isfinite(answer["reward"].get<double>())) {
      rewards->refuse(R"({"reward": number})", answer);
    }
    return answer["reward"].get<double>();
  };
}

ContestResult judge_contests(Judge& judge, const std::vector<Contest>& contests) {
  if (contests.empty()) throw DataError("judge_contests: expected a contest, got none");
  ContestResult result;
  result.contests = std::ssize(contests);
  for (const Contest& contest : contests) {
    if (contest.policy == contest.reference) {
      ++result.ties;
      continue;
    }
    const int first =
        vote(judge.compare(contest.prompt, contest.policy, contest.reference), Verdict::kFirst);
    const int second =
        vote(judge.compare(contest.prompt, contest.reference, contest.policy), Verdict::kSecond);
    if (first * second < 0) ++result.inconsistent;
    const int sum = first + second;
    ++(sum > 0 ? result.wins : sum < 0 ? result.losses : result.ties);
  }
  const double points = static_cast<double>(result.wins) + 0.5 * static_cast<double>(result.ties);
  const auto count = static_cast<double>(result.contests);
  result.win_rate = wilson_rate(points / count, count);
  return result;
}

}  // namespace prefopt
