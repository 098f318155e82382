// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "prefopt/math/functions.h"
#include "prefopt/options.h"

namespace prefopt {

/// Estimators of KL(π ‖ π_ref) from one token, with d = log π_ref − log π (Schulman 2020).
enum class KlEstimator {
  kK1,     ///< −d
  kK2,     ///< d² / 2
  kK3,     ///< e^d − d − 1
  kExact,  ///< the sum over the vocabulary
};

/// The place of the KL penalty.
enum class KlPlace {
  kReward,     ///< taken off the rewards, before the advantage
  kLoss,       ///< added to the loss, with its gradient
  kAdvantage,  ///< taken off each token's advantage: the token's own KL, not that to go (ReMax)
};

/// The factor of the KL in the loss.
enum class KlWeight {
  kNone,
  kRatio,  ///< the importance ratio, with its gradient: exact in expectation off the policy too
};

struct KlOptions {
  KlEstimator estimator = KlEstimator::kK3;
  KlPlace place = KlPlace::kLoss;
  KlWeight weight = KlWeight::kNone;
  double coefficient = 0;
  double target = 0;
  double horizon = 10000;

  /// Returns whether the loss has a KL term.
  bool is_in_loss() const { return coefficient > 0 && place == KlPlace::kLoss; }
  /// Returns whether the rewards or the advantages have a KL taken off.
  bool is_in_advantages() const { return coefficient > 0 && place != KlPlace::kLoss; }

  void fields(FieldVisitor& v) {
    v.choice(
        {"estimator",
         "of one token, d = log π_ref − log π: k1 −d, k2 d²/2, k3 e^d − d − 1, exact: over the "
         "vocabulary"},
        estimator, {"k1", "k2", "k3", "exact"});
    v.choice({"place",
              "reward: taken off the rewards; loss: added with its gradient; advantage: taken off "
              "each token's advantage"},
             place, {"reward", "loss", "advantage"});
    v.choice({"weight", "factor of the KL in the loss: ratio corrects for an older sampler"},
             weight, {"none", "ratio"});
    v.real({"coefficient", "β; 0: no KL and no reference"}, coefficient, Range::at_least(0));
    v.real({"target", "nats a completion that the coefficient is adapted to; 0: it stays"}, target,
           Range::at_least(0));
    v.real({"horizon", "completions over which it is adapted"}, horizon, Range::above(0));
  }
};

/// The KL of single tokens and its derivative in log π.
template <class T>
struct TokenKl {
  T values, slopes;
};

/// Returns an estimate from each token; d is limited to [-20, 20], with derivative 0 beyond. Not
/// for kExact.
template <class T>
TokenKl<T> estimate_kl(KlEstimator estimator, const T& logps, const T& ref_logps) {
  constexpr double kLimit = 20;
  const T gap = ref_logps - logps;
  const T d = math::clamp(gap, kLimit);
  const T within = 1 - math::is_positive(T(math::square(gap) - kLimit * kLimit));
  switch (estimator) {
    case KlEstimator::kK1:
      return {.values = -d, .slopes = within};
    case KlEstimator::kK2:
      return {.values = 0.5 * math::square(d), .slopes = -d * within};
    case KlEstimator::kK3:
    case KlEstimator::kExact:
      break;
  }
  const T growth = math::capped_expm1(d);
  return {.values = growth - d, .slopes = -growth * within};
}

}  // namespace prefopt
