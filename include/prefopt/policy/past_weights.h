// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/policy/policy.h"
#include "prefopt/policy/reference.h"
#include "prefopt/policy/weight_snapshot.h"

namespace prefopt {

/// The newest snapshots of a policy's trained weights. Memory for `keep` of them is taken at once.
class PREFOPT_API PastWeights {
 public:
  /// Holds none at first. Throws ConfigError for `keep` below 1 or a policy that trains nothing.
  PastWeights(const Policy& policy, std::int64_t keep);

  /// Adds the policy's present weights; the oldest snapshot makes room if need be.
  void add(const Policy& policy);
  std::int64_t size() const;
  /// Returns snapshot i, from 0, the oldest one, to size() - 1.
  const WeightSnapshot& at(std::int64_t i) const;
  /// Returns the place of one of them, each as likely as the others. Depends on seed, round and
  /// size() alone. Throws ConfigError if there is none.
  std::int64_t pick(std::int64_t seed, std::int64_t round) const;

  /// Returns all snapshots and their count, for a checkpoint: who resumes writes into them. Names
  /// and shapes are the same however many there are.
  std::vector<std::pair<std::string, at::Tensor>> state() const;

 private:
  std::vector<WeightSnapshot> slots_;
  at::Tensor added_;  ///< int64, of all times
};

/// A reference that is, in each round, a past policy drawn at random (SePPO, 2410.05255). Until the
/// first round it is the policy as it was. Its model can be sampled, as it is with a frozen one;
/// adapters are merged into it.
class PREFOPT_API RandomPastReference final : public Reference {
 public:
  /// Keeps up to `keep` snapshots. Throws what MovingReference and PastWeights throw.
  RandomPastReference(const Policy& policy, std::int64_t keep, std::int64_t seed);

  /// Adds the policy's present weights to the past ones and becomes one of those, drawn by (seed,
  /// round). The policy is as before afterwards.
  void start_round(Policy& policy, std::int64_t round);

  at::Tensor sequence_logps(const TokenBatch& batch) override;
  at::Tensor token_logps(const TokenBatch& batch) override;
  at::Tensor tempered_token_logps(const TokenBatch& batch, double temperature) override;
  Policy* policy() override;
  /// Returns the past weights and those of the model of this round.
  std::vector<std::pair<std::string, at::Tensor>> state() const override;

 private:
  MovingReference present_;
  PastWeights past_;
  std::int64_t seed_;
};

}  // namespace prefopt
