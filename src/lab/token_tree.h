// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>

#include "prefopt/exact/policy.h"
#include "prefopt/exact/random.h"

// All completions of one prompt with `depth` tokens of `letters` kinds, as a tree of prefixes, so
// that expectations under policies of tokens are sums.
namespace prefopt::lab {

using Eigen::ArrayXd;
using Eigen::Index;
using exact::Table;

/// A policy or its logits is a Table [letters, nodes], a column for each prefix: the empty one
/// first, then those of one token, and so on. Completions are in the order of their letters.
struct TokenTree {
  Index letters, depth;

  Index nodes() const { return first(depth); }   ///< prefixes that a token follows
  Index leaves() const { return width(depth); }  ///< completions
  /// Returns the prefixes of `level` tokens, and the place of the first of them among all.
  Index width(Index level) const;
  Index first(Index level) const { return (width(level) - 1) / (letters - 1); }
  /// Returns the prefix of `level` tokens of a completion, among all, and its next letter.
  Index node_of(Index leaf, Index level) const;
  Index letter_of(Index leaf, Index level) const;
};

/// Returns a policy of logits N(0, scale²).
Table random_policy(const TokenTree& tree, double scale, exact::Random& random);

/// Returns the log-probs of tokens of a completion, [depth].
ArrayXd token_logps(const TokenTree& tree, const Table& policy, Index leaf);

/// Returns the log-probs of completions, [leaves].
ArrayXd leaf_logps(const TokenTree& tree, const Table& policy);

/// Returns the policy of tokens whose completions have these log-probs.
Table policy_of_leaves(const TokenTree& tree, const ArrayXd& leaf_logps);

/// Returns β log E_ref[e^(r / β) | prefix] of each prefix, [nodes + leaves], rewards of the
/// completions themselves last. β infinite: the mean.
ArrayXd soft_values(const TokenTree& tree, const Table& ref, const ArrayXd& rewards, double beta);

/// Returns the maximizer of E r − β KL(π ‖ ref), whose completions are ref e^(r / β) / Z.
Table tilted_tree(const TokenTree& tree, const Table& ref, const ArrayXd& rewards, double beta);

/// Returns the derivative in the logits of a policy, from that in the log-probs of its tokens,
/// [letters, nodes].
Table logit_gradient(const Table& policy, const Table& by_logps);

/// Returns E r − β KL(π ‖ ref) over completions.
double regularized_reward(const TokenTree& tree, const Table& policy, const Table& ref,
                          const ArrayXd& rewards, double beta);

}  // namespace prefopt::lab
