// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "prefopt/exact/measures.h"
#include "prefopt/exact/random.h"

namespace prefopt::lab {

/// Six actions of one prompt, rewards within [-1, 1]; the reference takes the best and the worst in
/// one of six hundred draws.
struct RareBandit {
  static constexpr exact::Index kActions = 6;
  static constexpr double kBeta = 0.3;
  static constexpr double kMostReward = 1;
  static constexpr double kRareLogit = -5;

  explicit RareBandit(std::uint64_t seed) : random(seed), rewards(kActions, 1) {
    for (exact::Index y = 0; y < kActions; ++y) rewards(y, 0) = 0.6 * random.uniform() - 0.3;
    rewards(0, 0) = kMostReward;
    rewards(1, 0) = -kMostReward;
    exact::Table logits = 0.3 * random.normals(kActions, 1);
    logits.topRows(2) = kRareLogit;
    ref = exact::log_softmax(logits);
  }

  /// The distance of a policy from the optimal KL-regularized reward.
  double gap(const exact::Table& logps) const {
    return exact::suboptimality_gap(logps, ref, rewards, kBeta);
  }

  exact::Random random;
  exact::Table ref, rewards;
};

}  // namespace prefopt::lab
