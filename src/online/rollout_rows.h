// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "dist/meeting.h"
#include "prefopt/data/batch.h"
#include "prefopt/objectives/values.h"
#include "prefopt/online/online_rows.h"
#include "prefopt/online/rollout.h"
#include "prefopt/online/selection.h"
#include "prefopt/train/metrics.h"
#include "prefopt/train/state_visitor.h"

namespace prefopt::detail {

/// Rollouts of some prompts, those of one prompt side by side.
using PromptRollouts = std::vector<std::vector<Rollout>>;

/// Returns whether a source draws the completions that a greedy baseline takes its rewards from.
bool is_greedy(const SourceOptions& source);

/// Returns a selection that asks for rewards and makes no rows.
std::shared_ptr<Selection> rewards_alone();

/// Throws ConfigError where sources, options and objective do not fit.
void check_rollouts(const OnlineParts& parts, const OnlineRowsOptions& options);

/// A maker of rows for an objective on tokens from rated completions of a round: rewards,
/// log-probs, values and advantages, all before the first update.
class RolloutRows {
 public:
  /// `parts` and `meeting` have to outlive it. Ranks share the work of models, and get the same.
  RolloutRows(const OnlineParts& parts, std::int64_t seed, Meeting& meeting);

  struct Made {
    std::vector<TokenRow> rows;
    Metrics metrics;
  };
  /// `updates`: steps that the rows are for; of a single one the ratio is 1.
  Made make(Policy& policy, const PromptRollouts& rollouts, std::int64_t updates,
            std::int64_t round);
  /// Returns the mean reward of a prompt's completions, limited to [0, 1]; NaN: nobody could say.
  double success_rate(const std::vector<Rollout>& of_prompt) const;
  /// Returns whether a prompt's rewards are not all equal.
  bool has_signal(const std::vector<Rollout>& of_prompt) const;
  void visit_state(StateVisitor& visitor);

 private:
  struct Chosen;

  std::vector<Chosen> choose(const PromptRollouts& rollouts, std::int64_t round) const;
  void set_token_rewards(const std::vector<Chosen>& chosen, RolloutStep& step) const;
  void add_process_rewards(const std::vector<Chosen>& chosen, RolloutStep& step) const;
  Eigen::ArrayXd shaped_rewards(const std::vector<Chosen>& chosen);
  /// Returns numbers of all counted tokens of the rows.
  std::vector<double> measure(const std::vector<TokenRow>& rows,
                              const std::function<at::Tensor(const TokenBatch&)>& of_batch) const;

  const OnlineParts& parts_;
  std::int64_t seed_;
  Meeting& meeting_;
  RewardNormalizer normalizer_;
  double kl_coefficient_;
};

}  // namespace prefopt::detail
