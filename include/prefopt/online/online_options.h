// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/objectives/reward_shaping.h"
#include "prefopt/online/feedback.h"
#include "prefopt/online/implicit_reward.h"
#include "prefopt/online/tree_options.h"
#include "prefopt/options.h"
#include "prefopt/policy/sampling.h"

namespace prefopt {

/// The writer of completions.
enum class SourceKind {
  kPolicy,       ///< the policy at the start of the round
  kReference,    ///< the policy before training
  kLast,         ///< the policy at the start of the round before
  kPast,         ///< a random one of the newest `keep` policies at starts of rounds
  kEma,          ///< the moving average of the policy's weights, updated after each step
  kMixture,      ///< the geometric mixture of policy and reference, token by token
  kData,         ///< a column of the prompt file
  kProgram,      ///< a program that answers {"prompt": …} with {"completion": …}
  kEnvironment,  ///< the policy at the start of the round, turn by turn with an environment
  kFile,         ///< rollouts that were saved
  kTree,  ///< a tree search by the policy at the start of the round: steps in place of wholes
};

/// A prefix that another source writes: PPO++, AggreVaTeD (2306.11816).
struct RollInOptions {
  std::string from = {};   ///< name of that source; empty: no prefix
  double probability = 1;  ///< that a completion has one
};

/// The rounds in which a source writes: those from `first` to `last` whose number, drawn from [0,
/// 1) once for all sources of a round, is in [above, below). LOLS and D2LOLS (2306.11816).
struct SourceRounds {
  std::int64_t first = 1;
  std::int64_t last = 0;  ///< 0: no end
  double above = 0, below = 1;

  PREFOPT_API bool contain(std::int64_t round, double number) const;
};

struct SourceOptions {
  SourceKind from = SourceKind::kPolicy;
  std::string name = {};  ///< for selections and roll-ins; empty: that of `from`
  std::int64_t n = 1;     ///< completions of each prompt; 0: for roll-ins alone
  SamplingOptions sampling = {};
  double weight = 0.5;          ///< of the reference in a mixture
  double decay = 0.999;         ///< of the moving average
  std::int64_t keep = 8;        ///< past policies
  std::string column = "gold";  ///< of the prompt file
  /// The program and its arguments: a writer of completions, or an environment.
  std::vector<std::string> command = {};
  double timeout = 60;               ///< seconds to its answer
  std::string environment = "null";  ///< of make_environment_factory; null: `command` is one
  std::int64_t max_turns = 8;        ///< of an episode
  std::int64_t max_tokens = 1024;    ///< of an episode after the prompt, observations included
  std::int64_t workers = 1;          ///< processes of an environment
  std::int64_t retries = 0;          ///< new starts of an environment's process, for each question
  std::string path = {};             ///< of saved rollouts
  RollInOptions roll_in = {};
  SourceRounds rounds = {};
  TreeSearchOptions tree = {};  ///< of the search

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Returns whether rollouts of a source have rewards without feedback.
PREFOPT_API bool has_own_rewards(const SourceOptions& source);

/// The policy whose weights a round's training starts from.
enum class RoundStart { kPolicy, kInitial };

struct RoundOptions {
  std::int64_t rounds = 1;
  std::int64_t prompts = 0;  ///< of a round; 0: all of the file
  std::int64_t steps = 0;    ///< of a round, over equal parts of its rows; 0: `epochs` decides
  double epochs = 1;         ///< passes over the rows of a round, in steps of batch.rows
  RoundStart start = RoundStart::kPolicy;
  bool restart_optimizer = false;  ///< AdamW's means begin at zero in each round
  /// α of the outer step θ ← θ + α (θ − θ_previous) between rounds, see extrapolate_weights.
  double extrapolate = 0;

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Rows of earlier rounds that are trained on again.
struct ReplayOptions {
  double share = 0;         ///< of the rows of the round before
  double decay = 1;         ///< factor of the share for each further round
  std::int64_t rounds = 0;  ///< how many rounds back; 0: all

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Changes of rewards before they become advantages, in this order.
struct RewardOptions {
  double length = 0;  ///< weight of length_rewards, by which short right completions gain
  std::int64_t overlong_buffer = 0;  ///< tokens before max_new_tokens, of overlong_penalties
  double overlong_factor = 1;
  bool normalize = false;  ///< by the mean and spread of all rewards so far
  bool scale = false;      ///< by their spread alone
  double clip = 0;         ///< limit on both sides; 0: none

  PREFOPT_API void fields(FieldVisitor& v);
};

/// Rows that are imitated next to rollouts: a pretraining mix.
struct ImitationOptions {
  std::string data = {};   ///< file of rows; empty: none
  double coefficient = 1;  ///< of the mean negative log-prob of their tokens
  std::int64_t rows = 8;   ///< of each step

  PREFOPT_API void fields(FieldVisitor& v);
};

/// The completions that an objective on tokens learns from.
struct RolloutSelection {
  RankFilter filter = RankFilter::kNone;  ///< keeps one of each prompt, by rank weights (PF-PPO)
  /// Draws further prompts in place of those whose rewards are all equal (DAPO).
  bool dynamic_sampling = false;
  std::int64_t most_draws = 10;  ///< times that a round draws, under dynamic sampling
  bool priorities = false;       ///< prompts by 1 − their rate of success (Kimi k1.5)

  PREFOPT_API void fields(FieldVisitor& v);
};

/// The group `online` of a run whose policy writes its own rows.
struct OnlineOptions {
  std::string prompts = {};       ///< JSONL; empty: the run is not online
  std::string eval_prompts = {};  ///< JSONL; empty: `eval_fraction` of the prompts
  double eval_fraction = 0;
  std::string sources = R"([{"from": "policy", "n": 2}])";  ///< a list of SourceOptions as JSON
  FeedbackOptions feedback = {};
  std::string select = R"({"type": "pair"})";  ///< of make_selection
  RoundOptions rounds = {};
  ReplayOptions replay = {};
  RolloutSelection rollouts = {};  ///< of an objective on tokens
  RewardOptions reward = {};       ///< of the same
  /// Rewards of steps, of the same; of an objective with a dpo_reward, the model that DPO trained.
  ProcessRewardOptions process_reward = {};
  ImitationOptions imitate = {};  ///< of the same
  std::int64_t at_once = 64;   ///< completions that are decoded together, without effect on results
  bool save_rollouts = false;  ///< a file a round, rollouts/round-000001.jsonl, of save_rollouts

  PREFOPT_API void fields(FieldVisitor& v);
  bool is_online() const { return !prompts.empty(); }
};

/// Returns the sources of a list in JSON, with `sampling` where they leave it out and names that
/// differ. Throws ConfigError, led by `where`, for an unknown option, one that the kind of source
/// does not use, two sources of one name, or a roll-in from no other source.
PREFOPT_API std::vector<SourceOptions> parse_sources(std::string_view json,
                                                     const SamplingOptions& sampling,
                                                     std::string_view where);

}  // namespace prefopt
