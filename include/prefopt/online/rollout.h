// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/sampling.h"

namespace prefopt {

/// The place of a step in the tree of a search.
struct StepPlace {
  std::int64_t node = -1;  ///< -1: no step of a tree
  std::int64_t parent = -1, depth = 0, visits = 0;
  double value = 0;      ///< Q
  bool is_dead = false;  ///< it leads to no end that was rated
  bool is_best = false;  ///< on the way to the best end
};

/// A completion that a policy wrote.
struct Rollout {
  std::vector<std::int64_t> prompt, completion;
  /// Of the sampler, one a token of the completion, in nats; 0 where an environment wrote it.
  std::vector<double> token_logps = {};
  bool ended = false;                ///< whether the last token is an end token
  std::vector<double> rewards = {};  ///< empty until it is rated
  std::int64_t group = 0;            ///< the same for all rollouts of one prompt
  /// The tokens that the policy chose, where a program wrote others between them; empty: all.
  std::vector<std::uint8_t> acted = {};
  /// The place after the last token of each action, where an environment speaks between them; the
  /// last one is the end of the completion. Empty: a single turn.
  std::vector<std::int64_t> turn_ends = {};
  /// Parts of the reward, one a token of the completion; empty: the reward is of the whole.
  std::vector<double> token_rewards = {};
  std::int64_t source = 0;                  ///< place of its source in the list of sources
  std::string prompt_text = {}, text = {};  ///< for feedback, without end tokens
  StepPlace step = {};
};

struct RolloutOptions {
  std::int64_t samples_per_prompt = 1;
  /// Rollout k of prompt i draws with (seed, first_index + i · samples_per_prompt + k), however the
  /// prompts are cut into calls.
  SamplingOptions sampling = {};
  std::int64_t at_once =
      64;  ///< rollouts that are decoded together; bounds memory, changes nothing
};

/// Returns the text of a completion without its end token, if it has one, as it follows `prompt`.
PREFOPT_API std::string completion_text(const std::vector<std::int64_t>& completion,
                                        const Tokenizer& tokenizer, const SamplingOptions& options,
                                        const std::vector<std::int64_t>& prompt = {});

/// Called after each part of the rollouts.
using RolloutProgress = std::function<void(std::size_t done, std::size_t total)>;

/// Draws completions of each prompt, those of one prompt side by side; `group` is the place of the
/// prompt. Throws ConfigError for numbers below 1, and what `sample` throws.
PREFOPT_API std::vector<Rollout> draw_rollouts(
    Policy& policy, const std::vector<std::vector<std::int64_t>>& prompts,
    const RolloutOptions& options, const RolloutProgress& progress = {});

}  // namespace prefopt
