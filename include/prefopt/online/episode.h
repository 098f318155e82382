// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"
#include "prefopt/online/environment.h"
#include "prefopt/online/rollout.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/sampling.h"

namespace prefopt {

/// A prompt that episodes begin with.
struct EpisodePrompt {
  std::vector<std::int64_t> ids;
  std::string text;              ///< for the environment and for feedback
  bool is_conversation = false;  ///< made of messages, it ends with the opening of an answer
  std::int64_t seed = 0;         ///< of Episode::seed
};

struct EpisodeOptions {
  std::int64_t samples_per_prompt = 1;
  std::int64_t max_turns = 8;
  std::int64_t max_tokens = 1024;  ///< after the prompt, observations included
  /// Turn t of rollout k of prompt i draws with (seed, t, first_index + i · samples_per_prompt +
  /// k). max_new_tokens is that of a turn.
  SamplingOptions sampling = {};
  std::int64_t at_once = 64;     ///< episodes that are played together, without effect on results
  std::string chat_format = {};  ///< of observations in conversations, see `prefopt/data/chat.h`
};

/// Plays episodes of each prompt, those of one prompt side by side; `group` is the place of the
/// prompt. In each turn the policy writes an action, up to an end token, a stop string or
/// max_new_tokens; the environment's observation is appended, and so on until the episode is done,
/// which sets `ended`, or has max_turns or max_tokens.
///
/// Observations are text in which nothing becomes a control token. In a conversation each is a turn
/// of the user, without white space at its ends, and what the policy did not write of the turns
/// around it; elsewhere it is appended as it is. The first one is part of `prompt`: it has to be
/// the same for all episodes of a prompt. `acted` is 0 on the tokens of the others; `text` is all
/// that follows the prompt's text. `rewards` is the sum of the turns' rewards, which
/// `token_rewards` has at the last token of each action.
///
/// Each turn reads the whole text so far again, without effect on what is drawn: T turns of n
/// tokens cost the forward pass of n T²/2 tokens before the tokens that are drawn.
///
/// Throws ConfigError for numbers below 1 and for a chat format that is not known, DataError for
/// first observations that differ or leave no room, and for a text that is too long for the model;
/// and what `sample` and the environments throw.
PREFOPT_API std::vector<Rollout> draw_episodes(Policy& policy, const Tokenizer& tokenizer,
                                               Environments& environments,
                                               const std::vector<EpisodePrompt>& prompts,
                                               const EpisodeOptions& options,
                                               const RolloutProgress& progress = {});

}  // namespace prefopt
