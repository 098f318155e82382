// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/dist/ranks.h"
#include "prefopt/export.h"
#include "prefopt/losses/loss.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/online/environment.h"
#include "prefopt/online/online_options.h"
#include "prefopt/online/preference.h"
#include "prefopt/online/rollout.h"
#include "prefopt/online/selection.h"
#include "prefopt/online/step_tree.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/reward_policy.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/train/row_source.h"

namespace prefopt {

/// A prompt that waits for completions, and the one that the data has for it.
struct OnlinePrompt {
  std::vector<std::int64_t> ids;
  std::string text;
  std::vector<std::int64_t> completion = {};  ///< of a source `data`
  TokenMask completion_mask = {};             ///< the tokens of it that count; empty: all
  bool is_conversation = false;               ///< made of messages, for environments
};

/// A program's completions of prompts, for sources of that kind.
using CompletionProgram =
    std::function<std::vector<std::string>(const std::vector<std::string>& prompts)>;

/// Everything that rounds are made from.
struct OnlineParts {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::vector<OnlinePrompt> prompts, eval_prompts = {};
  std::vector<SourceOptions> sources;
  std::vector<CompletionProgram> programs = {};  ///< one a source; empty but for programs
  /// One a source; null but for environments.
  std::vector<std::shared_ptr<Environments>> environments = {};
  std::vector<std::vector<Rollout>> saved = {};  ///< one a source; empty but for files
  std::string chat_format = {};                  ///< of an environment's turns in conversations
  std::shared_ptr<Preference> feedback = {};     ///< null: the selection asks nothing
  RaterOptions rater = {};
  std::shared_ptr<Selection> selection;
  LossRequirements needs = {};           ///< of the loss; a column that it does not read is refused
  std::shared_ptr<Policy> initial = {};  ///< the policy before training, for sources and contests
  /// Set: rows are rollouts for an objective on tokens, and the selection has no part in them.
  std::optional<TokenObjective> objective = {};
  std::shared_ptr<Reference> reference = {};       ///< of an objective with a KL
  std::shared_ptr<RewardPolicy> value_model = {};  ///< of an objective with values
  RolloutSelection rollouts = {};
  RewardOptions reward = {};
  ProcessRewardOptions process_reward = {};
  /// Its model, null: none, and its reference, null where the objective has a dpo_reward.
  std::shared_ptr<Policy> process_model = {}, process_reference = {};
  std::vector<TokenRow> imitated = {};  ///< rows of a pretraining mix
  std::int64_t imitated_rows = 0;       ///< of each step
  double temperature = 1;               ///< of the sources of rollouts
  std::int64_t micro_tokens = 1 << 14;  ///< tokens at a time where rollouts are scored
  SamplingOptions sampling = {};        ///< of evaluations
  /// Ranks that share the prompts of rounds and evaluations, and have the same rows; null: none do.
  /// Feedback, programs and environments of each are asked about its own prompts.
  std::shared_ptr<Ranks> ranks = {};
  /// Moves the reference at the start of a round; empty: it does not move by rounds.
  std::function<void(Policy& policy, std::int64_t round)> start_round = {};
  /// Receives the phase of a round, "sampling" or "rating", and how much of it is done.
  std::function<void(std::string_view phase, std::int64_t done, std::int64_t total)> progress = {};
  std::function<void(const std::string& line)> note = {};
  /// Receives the rollouts of a round, of each of its prompts, once they are rated.
  std::function<void(std::int64_t round, const std::vector<std::vector<Rollout>>& rollouts)> save =
      {};
  /// Receives the trees of some prompts of a round, the first of which is at place `first`.
  std::function<void(std::int64_t round, std::int64_t first, const std::vector<StepTree>& trees)>
      save_trees = {};
};

struct OnlineRowsOptions {
  RoundOptions rounds = {};
  ReplayOptions replay = {};
  std::int64_t batch_rows = 16;
  std::int64_t at_once = 64;
  std::int64_t seed = 0;
};

/// Rows that the policy writes, round after round: draw completions of prompts from the sources,
/// rate them, select rows, train on them. A draw depends on (seed, round, prompt, source, index)
/// alone, a selection on (seed, round, prompt).
///
/// A round without a row is skipped. Three one after the other, or no other ones in the whole run,
/// are a DataError with what became of the completions of the last one.
class PREFOPT_API OnlineRows final : public RowSource {
 public:
  /// Throws ConfigError for no prompts, more prompts a round than there are, a part that sources or
  /// selection need and that is missing, or sampling that the selection cannot weigh. `policy` is
  /// the one that will be trained.
  OnlineRows(OnlineParts parts, const OnlineRowsOptions& options, const Policy& policy);
  ~OnlineRows() override;

  StepRows next(Policy& policy) override;
  void finish_step() override;
  bool is_done() const override;
  bool ends_itself() const override { return true; }
  /// Returns the most steps that the rounds take, for a schedule: those of prompts that all give as
  /// many rows as they can.
  std::int64_t most_steps() const;
  bool evaluates() const override;
  /// Returns the mean reward on the held-out prompts, if there are rewards, the rates of wins over
  /// the policy before training and over that of the evaluation before, if there was one, and
  /// lengths.
  Metrics evaluate(Policy& policy) override;
  void finish_evaluation() override;
  std::vector<std::vector<std::int64_t>> sample_prompts() const override;
  void visit_state(StateVisitor& visitor) override;
  void visit_evaluation(StateVisitor& visitor) override;
  std::string fingerprint() const override;
  std::string text_of(const std::vector<std::int64_t>& tokens) const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace prefopt
