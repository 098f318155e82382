// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "dist/meeting.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/losses/loss.h"
#include "prefopt/online/online_rows.h"
#include "prefopt/policy/reward_policy.h"
#include "prefopt/run/run.h"
#include "run/run_folder.h"
#include "run/run_loss.h"

// A run whose policy writes its own rows, from the options of a config.
namespace prefopt::detail {

/// A reference, and what moves it at the start of a round (empty: nothing does).
struct RoundReference {
  std::shared_ptr<Reference> reference;
  std::function<void(Policy& policy, std::int64_t round)> start_round = {};
};

/// Throws ConfigError for options that contradict each other, or a rule of rounds without any.
void check_reference(const ReferenceOptions& options, bool is_online);

/// Returns the reference that follows `policy` by the rule; `frozen` is the policy before training.
RoundReference follow(const ReferenceOptions& options, std::shared_ptr<Policy> frozen,
                      const Policy& policy, std::int64_t seed);

/// Prompts to write completions of, and those held out.
struct OnlinePrompts {
  std::vector<OnlinePrompt> train, held_out;
};

/// Loads the prompt files that the options name, with the completions of a source `data`. Throws
/// ConfigError for rows in `data` as well, DataError as load_prompts.
OnlinePrompts load_online_prompts(const RunOptions& options,
                                  const std::vector<SourceOptions>& sources,
                                  const Tokenizer& tokenizer, const Note& note);

/// Returns the source of the run's rows, and in `planned_steps` the most steps that they make. A
/// `best_metric` that is not set becomes the reward of held-out prompts, or else the win rate.
std::shared_ptr<OnlineRows> make_online_rows(RunOptions& options, OnlinePrompts prompts,
                                             std::vector<SourceOptions> sources,
                                             const std::shared_ptr<const Tokenizer>& tokenizer,
                                             const Decoder& policy, std::shared_ptr<Policy> initial,
                                             const RunLoss& loss, const RoundReference& reference,
                                             std::shared_ptr<RewardPolicy> value_model,
                                             const Meeting& meeting, const RunEvents& events,
                                             const Note& note, std::int64_t& planned_steps);

/// Returns the temperature of the completions that an objective on tokens learns from.
double rollout_temperature(const std::vector<SourceOptions>& sources);

/// Returns whether rounds or evaluations need a model of the policy before training.
bool needs_initial(const OnlineOptions& options, const std::vector<SourceOptions>& sources);

}  // namespace prefopt::detail
