// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// All completions that are rated together, with what is known of them before any update: of one
/// optimizer step or of a round of several. Numbers of tokens hold all completions one after the
/// other, tokens that the policy did not choose among them. Empty arrays: not there.
struct RolloutStep {
  std::vector<std::int64_t> lens;    ///< [completions] tokens
  std::vector<std::int64_t> groups;  ///< [completions] equal for completions of one prompt
  Eigen::ArrayXd acted;              ///< [tokens] 1 where the policy chose the token, else 0
  Eigen::ArrayXd rewards;            ///< [completions] NaN: nobody could say
  Eigen::ArrayXd greedy_rewards;     ///< [completions] of the greedy completion of the prompt
  Eigen::ArrayXd given;              ///< [tokens] advantages that the rows have
  Eigen::ArrayXd token_rewards;      ///< [tokens] in addition to `rewards` at the last acted token
  Eigen::ArrayXd values;             ///< [tokens] of the states that the tokens were chosen in
  Eigen::ArrayXd old_logps;          ///< [tokens] of the policy that the updates start from, nats
  Eigen::ArrayXd ref_logps;          ///< [tokens] of the reference
  Eigen::ArrayXd extra_logps;        ///< [tokens] of a model trained by DPO (RTO)

  std::int64_t completions() const { return static_cast<std::int64_t>(lens.size()); }
  std::int64_t tokens() const { return acted.size(); }
  /// Returns the place of the first token of each completion, and at the end the number of tokens.
  PREFOPT_API std::vector<std::int64_t> starts() const;
  /// Returns how many tokens of each completion the policy chose.
  PREFOPT_API Eigen::ArrayXd acted_tokens() const;
  /// Returns 1 at the tokens that statistics count: the policy chose them, and their completion has
  /// a reward; else 0.
  PREFOPT_API Eigen::ArrayXd rated_tokens() const;
  /// Returns the completions of each group that have a reward, groups in order of first appearance.
  PREFOPT_API std::vector<std::vector<std::int64_t>> rated_groups() const;
  /// Returns one value a completion as one a token.
  PREFOPT_API Eigen::ArrayXd spread(const Eigen::ArrayXd& of_completions) const;
};

/// Throws ShapeError for a negative length or arrays of other lengths than `lens` says, DataError
/// for `acted` other than 0 or 1, an infinite reward, or a number of an acted token that is not
/// finite, naming the completion.
PREFOPT_API void check_rollout_step(const RolloutStep& step);

}  // namespace prefopt
