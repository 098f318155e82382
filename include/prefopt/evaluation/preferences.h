// SPDX-License-Identifier: Apache-2.0
#pragma once

// A policy's preferences between completions of pairs, against a reference's.

#include <cstdint>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/evaluation/calibration.h"
#include "prefopt/evaluation/statistics.h"
#include "prefopt/export.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/reward_policy.h"

namespace prefopt {

/// Log-probs of both completions of a pair, summed over their tokens, nats; or their rewards.
struct PairSums {
  double chosen = 0;
  double rejected = 0;
};

/// Returns the sums of each pair, computed `batch_size` pairs at a time. Throws what sequence_logps
/// throws, DataError for tokens outside the vocabulary and NonFiniteError, which names the pair.
PREFOPT_API std::vector<PairSums> pair_sums(Policy& policy, const std::vector<TokenRow>& pairs,
                                            std::int64_t batch_size = 8);

/// Returns the rewards of both completions of each pair, as pair_sums does their log-probs.
PREFOPT_API std::vector<PairSums> pair_rewards(RewardPolicy& model,
                                               const std::vector<TokenRow>& pairs,
                                               std::int64_t batch_size = 8);

/// A rate among some of the pairs; NaN if there are none.
struct PartialRate {
  std::int64_t pairs = 0;
  Estimate rate;
};

struct PreferenceEvaluation {
  std::int64_t pairs = 0;
  std::int64_t ties = 0;  ///< margins of exactly 0, which `accuracy` counts as wrong, as TRL does
  Estimate accuracy;      ///< share of pairs with a margin above 0; Wilson's interval
  Estimate margin;        ///< mean of β δ, bootstrap
  Estimate chosen_reward, rejected_reward;  ///< mean of β (log π − log π_ref), bootstrap
  /// Of σ(β δ), the probability that the chosen completion is the better one (2305.18290, eq. 6).
  CalibrationCurve calibration;
  /// Of margin and difference of lengths, chosen − rejected, in tokens.
  Estimate length_correlation;
  /// Accuracy on pairs whose chosen completion has fewer, as many and more tokens.
  PartialRate shorter, as_long, longer;
};

struct PreferenceOptions {
  double beta = 0.1;       ///< above 0
  std::int64_t bins = 10;  ///< of the calibration
  std::uint64_t seed = 0;  ///< of the bootstrap
};

/// Evaluates δ = (log π(y_w) − log π_ref(y_w)) − (log π(y_l) − log π_ref(y_l)); of a reward model,
/// with zeros in place of the reference and beta 1, δ = r_w − r_l. Throws ShapeError unless the
/// lists have one length, ConfigError for a beta that is not above 0, DataError for no pairs.
PREFOPT_API PreferenceEvaluation evaluate_preferences(const std::vector<TokenRow>& pairs,
                                                      const std::vector<PairSums>& policy,
                                                      const std::vector<PairSums>& reference,
                                                      const PreferenceOptions& options = {});

}  // namespace prefopt
