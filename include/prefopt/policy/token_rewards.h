// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/export.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

/// Returns the rewards that a model gives the tokens of completions that count, as one trained with
/// a reference on outcomes alone does (implicit process rewards, 2412.01981 proposition 3.1):
///   r_t = beta (log π(y_t | x, y_<t) − log π_ref(y_t | x, y_<t)).
/// Their sum up to t is the value of the prefix, q_t = beta log E_ref[e^(R / beta) | x, y_≤t] less
/// that of the prompt, with R the reward that the model has learned: between the mean of R over
/// continuations (beta large) and their largest (beta small).
///
/// Scores `at_once` sequences at a time, which bounds memory and changes nothing. Without gradient.
/// Throws ConfigError for vocabularies of different sizes or at_once below 1, NonFiniteError for a
/// log-prob that is not finite, and what sequence_logps throws.
PREFOPT_API std::vector<std::vector<double>> implicit_token_rewards(
    Policy& model, Policy& reference, const std::vector<TokenSequence>& sequences, double beta,
    std::int64_t at_once = 16);

}  // namespace prefopt
