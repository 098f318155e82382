// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// Returns the places of up to `count` candidates that statistical rejection sampling accepts, in
/// the order of acceptance (RSO, 2309.06657, Algorithm 1). A pass looks at all candidates that are
/// left, in order, and accepts one of reward r where
///
///   u < exp((r - top) / beta),   u uniform in [0, 1), top = the largest reward left,
///
/// so the top itself always passes; accepted candidates leave after the pass. `uniform` is called
/// once for each candidate that is looked at. Of many draws from pi, those accepted first follow
/// pi_r, proportional to pi exp(r / beta) (equation 4). beta = 0: the largest rewards, the first of
/// equal ones first, without a call of `uniform`. Fewer than `count` candidates: all are accepted.
/// Throws ConfigError unless rewards are finite, beta is at least 0 and finite, and count at
/// least 1.
PREFOPT_API std::vector<std::int64_t> accept_by_rejection(const std::vector<double>& rewards,
                                                          double beta, std::int64_t count,
                                                          const std::function<double()>& uniform);

}  // namespace prefopt
