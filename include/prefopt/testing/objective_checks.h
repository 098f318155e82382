// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/objectives/advantage.h"
#include "prefopt/objectives/rollout_step.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/objectives/token_rule.h"
#include "prefopt/testing/loss_checks.h"

// Checks for your own pieces of objectives on tokens. They need no test framework:
//   CHECK(prefopt::testing::check_rule(MyRule()).text() == "");
//   CHECK(prefopt::testing::check_advantage(MyAdvantage()).text() == "");
namespace prefopt::testing {

struct ObjectiveCheckOptions {
  std::uint64_t seed = 1;
  double tolerance = 1e-6;  ///< of differences, relative; rounding of the loss is added to it
};

/// Returns a step with all that an advantage may read: completions of three prompts, ragged and
/// mixed, with tokens that the policy did not choose; one completion is empty, and in one the
/// policy chose nothing. The same numbers on every machine.
PREFOPT_API RolloutStep random_rollouts(std::uint64_t seed);

/// Returns the acted tokens of random_rollouts with all that an objective may read. Log-probs of
/// the policy lie within `spread` nats of the older one's; turns end where the policy did not
/// choose.
PREFOPT_API BasicTokenArrays<Eigen::ArrayXd> random_token_arrays(std::uint64_t seed,
                                                                 double spread = 0.5);

/// Returns the acted tokens of a step with these advantages [tokens of the step], the rest random.
PREFOPT_API BasicTokenArrays<Eigen::ArrayXd> token_arrays_of(const RolloutStep& step,
                                                             const Eigen::ArrayXd& advantages,
                                                             std::uint64_t seed,
                                                             double spread = 0.5);

/// Returns the given completions alone, in this order, as a part of the same step.
PREFOPT_API BasicTokenArrays<Eigen::ArrayXd> take_completions(
    const BasicTokenArrays<Eigen::ArrayXd>& in, const std::vector<std::int64_t>& completions);
PREFOPT_API RolloutStep take_completions(const RolloutStep& step,
                                         const std::vector<std::int64_t>& completions);

/// Returns the same numbers as float64 tensors.
PREFOPT_API TokenArrays as_tensors(const BasicTokenArrays<Eigen::ArrayXd>& in);

/// Runs all checks of a rule and reports what fails; the checks, by name:
///   difference       by_log_ratio and by_logp against differences of the losses; at a kink, any
///                    slope between those of both sides
///   stops_ratio      no by_log_ratio of a rule that declares that its ratio takes no gradient
///   agreement        tensors against Eigen arrays
///   token            a token's numbers do not depend on the other tokens
///   finite           log-ratios and advantages up to 1e4 in size
///   policy_gradient  the gradient −A at ratio 1, where that is declared
///   config           if the rule is registered, make_rule(config()) gives it back
/// and, at each level, those of check_objective for an objective with this rule. An exception is a
/// failure of its check.
PREFOPT_API LossReport check_rule(const TokenRule& rule, const ObjectiveCheckOptions& options = {});

/// Runs all checks of an advantage and reports what fails; the checks, by name:
///   acted        NaN in numbers of tokens that the policy did not choose changes nothing
///   undeclared   parts of the step that needs() does not name change nothing
///   unscorable   a completion without a reward changes no other, as if it were not there
///   permutation  permuted completions give permuted advantages
///   cut          the parts of a step add up to the step, in the loss and in the gradient
///   property     the declared properties
///   config       if the advantage is registered, make_advantage(config()) gives it back
PREFOPT_API LossReport check_advantage(const Advantage& advantage,
                                       const ObjectiveCheckOptions& options = {});

/// Runs all checks of a whole objective and reports what fails; the checks, by name:
///   difference    grad_* against differences of the loss, near to the older policy and far from
///   it;
///                 the ratio is held where the rule says that it takes no gradient
///   agreement     tensors against Eigen arrays, in the loss, its terms and its gradients
///   autograd      `loss.backward()` against grad_*
///   first_update  without old_logps as with those of the policy itself
///   cut           the parts of a step add up to the step; no token at all is a loss of 0
///   permutation   permuted completions give the permuted gradient
///   misuse        missing or short arrays and totals below what is given are a ShapeError
PREFOPT_API LossReport check_objective(const TokenObjective& objective,
                                       const ObjectiveCheckOptions& options = {});

}  // namespace prefopt::testing
