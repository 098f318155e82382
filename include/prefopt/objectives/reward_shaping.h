// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <string_view>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// Returns the length rewards of a group (Kimi k1.5, 2501.12599 section 2.3.3): λ = ½ − (L − min) /
/// (max − min), of wrong completions min(0, λ); 0 where all lengths are equal. `lens` and `correct`
/// [completions]; other sizes are a ShapeError.
PREFOPT_API Eigen::ArrayXd length_rewards(const Eigen::ArrayXd& lens,
                                          const std::vector<bool>& correct);

/// Returns the penalty of overlong completions (DAPO, 2503.14476 eq. 13): 0 up to max − buffer
/// tokens, then falling to −factor at max, and −factor beyond. Throws ConfigError for a buffer that
/// is not above 0 and at most max.
PREFOPT_API Eigen::ArrayXd overlong_penalties(const Eigen::ArrayXd& lens, double max, double buffer,
                                              double factor = 1);

/// Weights of the N completions of a prompt by rank, the best first (PF-PPO, 2409.06957).
enum class RankFilter {
  kNone,        ///< 1/N each
  kBest,        ///< the best alone (BoN)
  kBestRandom,  ///< ½ the best, the others alike (BR)
  kBestWorst,   ///< ½ the best, ½ the worst (BW)
};

/// Returns the probability of each completion of a group to be the one that is kept. Completions of
/// equal reward have the mean weight of their ranks. One without a reward (NaN) has weight 0 and no
/// rank; where none has a reward, all weigh the same.
PREFOPT_API Eigen::ArrayXd rank_weights(const Eigen::ArrayXd& rewards, RankFilter filter);

/// Returns probabilities of prompts that fall with their rates of success, ∝ 1 − s (Kimi k1.5,
/// section 2.3.4); uniform where all succeed. Throws DataError for a rate outside of [0, 1].
PREFOPT_API Eigen::ArrayXd prompt_priorities(const Eigen::ArrayXd& success_rates);

}  // namespace prefopt
