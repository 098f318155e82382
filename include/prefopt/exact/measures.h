// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "prefopt/exact/policy.h"
#include "prefopt/exact/preferences.h"
#include "prefopt/export.h"

// Expectations under policies given as tables of log-probs, as sums without sampling. Prompts are
// equally likely: each function returns the mean over them. Tables have to agree in shape, which is
// checked (ShapeError). A log-prob may be -inf.
namespace prefopt::exact {

/// Returns each column less its log-sum-exp.
PREFOPT_API Table log_softmax(const Table& logits);

/// Returns E_pi[v] = sum_y pi(y|x) v(y, x).
PREFOPT_API double expectation(const Table& logps, const Table& values);

/// Returns -E_pi[log pi], in nats.
PREFOPT_API double entropy(const Table& logps);

/// Returns KL(p || q) = E_p[log p - log q], in nats; infinite if q is 0 where p is not.
PREFOPT_API double kl(const Table& p, const Table& q);

/// Returns the probability that an action of p beats one of q.
PREFOPT_API double win_rate(const Table& p, const Table& q, const Preferences& preferences);

/// Returns the maximizer of E_pi[r] - beta KL(pi || ref): log of ref e^(r / beta) / Z (2305.18290
/// eq. 4). Throws ConfigError unless beta > 0.
PREFOPT_API Table optimum(const Table& ref, const Table& rewards, double beta);

/// Returns the policy of maximum reward among those with KL(pi || ref) = `distance`: the optimum()
/// of the beta with that distance, by bisection. Beyond the distance of the best actions alone,
/// returns those. Throws ConfigError unless distance > 0.
PREFOPT_API Table optimum_at(const Table& ref, const Table& rewards, double distance);

/// Returns E_pi[r] - beta KL(pi || ref).
PREFOPT_API double regularized_reward(const Table& logps, const Table& ref, const Table& rewards,
                                      double beta);

/// Returns the optimum's regularized reward less that of `logps`. It equals beta KL(pi || optimum)
/// and is computed as that: to full relative precision even if it is tiny.
PREFOPT_API double suboptimality_gap(const Table& logps, const Table& ref, const Table& rewards,
                                     double beta);

}  // namespace prefopt::exact
