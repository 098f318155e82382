// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/export.h"
#include "prefopt/online/rollout.h"
#include "prefopt/online/step_tree.h"
#include "prefopt/online/tree_options.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/sampling.h"

namespace prefopt {

/// Returns the rewards of whole completions; NaN: nobody could say.
using EndRewards = std::function<std::vector<double>(const std::vector<const Rollout*>& ends)>;

/// Returns estimates of states in the middle of a completion, such as a policy's own confidence in
/// it. Each is a rollout whose completion is all steps so far.
using StateValues =
    std::function<std::vector<double>(Policy& policy, const std::vector<const Rollout*>& states)>;

/// A Monte Carlo tree search over the steps of completions. An iteration descends from the prompt
/// by the tree's rule, lets the policy write `breadth` steps wherever it comes to a state without
/// any, until it comes to an end, asks for the end's reward and backs it up. A step ends with the
/// step_end or after step_tokens; one at max_depth is the whole rest of the completion.
///
/// Every draw depends on (seed, number of the tree, node, step) alone: trees are the same whatever
/// other trees are searched with them and however often a search is stopped, saved and continued.
class PREFOPT_API TreeSearch {
 public:
  /// `sampling.max_new_tokens` limits a whole completion; its stop strings end one. Throws
  /// ConfigError for min_new_tokens, and for a step_end that is also a stop string.
  TreeSearch(const TreeSearchOptions& options, SamplingOptions sampling,
             std::shared_ptr<const Tokenizer> tokenizer, EndRewards end_rewards,
             StateValues state_values = {});

  /// Returns the options that decide what a search finds, as JSON: all but its budgets.
  std::string config() const;
  /// Throws ConfigError for a tree that was searched with another config().
  void check_search(const std::vector<StepTree>& trees) const;
  /// Runs each tree's next `iterations`, or those that are left to it; all trees side by side, at
  /// most `at_once` steps at a time. Throws what `sample` throws, ConfigError for a tree that
  /// was searched with another config(), and DataError for another number of rewards than ends, or
  /// a reward that is infinite.
  void run(Policy& policy, std::vector<StepTree>& trees, std::int64_t iterations,
           std::int64_t at_once = 64) const;
  /// Returns whether nothing is left to do: all iterations, the token budget, or all ends dead.
  bool is_done(const StepTree& tree) const;

 private:
  struct Descent;

  void iterate(Policy& policy, std::vector<Descent>& descents, std::int64_t at_once) const;
  void expand(Policy& policy, const std::vector<Descent*>& open, std::int64_t at_once) const;
  void estimate(Policy& policy, const std::vector<Descent*>& open) const;
  void rate_ends(std::vector<Descent>& descents) const;
  Rollout rollout_of(const StepTree& tree, std::int64_t place) const;
  StepNode step_of(const StepTree& tree, std::int64_t place, std::vector<std::int64_t> tokens,
                   std::vector<double> logps) const;

  TreeSearchOptions options_;
  SamplingOptions sampling_, step_sampling_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  EndRewards end_rewards_;
  StateValues state_values_;
};

/// Returns the steps of a tree as rollouts: `prompt` is the prompt and the path to the step,
/// `completion` the step, `rewards` its value where it was visited, `step` its place.
PREFOPT_API std::vector<Rollout> step_rollouts(const StepTree& tree);

/// Returns what asks a policy how sure it is that the steps so far are right (2405.00451, section
/// 2): P(yes) / (P(yes) + P(no)) after the question, by the probabilities of both answers' tokens,
/// divided by max(depth − 3, 1) as in the authors' code.
PREFOPT_API StateValues self_evaluation(const SelfEvaluationOptions& options,
                                        std::shared_ptr<const Tokenizer> tokenizer);

}  // namespace prefopt
