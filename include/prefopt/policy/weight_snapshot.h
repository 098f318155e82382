// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

/// Copies in main memory of the parameters that require a gradient: the matrices of adapters, or
/// whole weights. Of bfloat16 and float16 parameters it holds the rounded values.
class PREFOPT_API WeightSnapshot {
 public:
  /// Takes the policy's present weights. Throws ConfigError if it trains none.
  explicit WeightSnapshot(const Policy& policy);

  /// Takes the present weights of a policy with the same trained weights, into the same memory.
  /// Throws ConfigError for another policy.
  void take(const Policy& policy);
  /// Writes them into the policy's parameters of the same names, whether these require a gradient
  /// or not: a frozen copy has them too. Throws ConfigError, and changes nothing, where a name is
  /// missing or a shape differs.
  void restore(Policy& policy) const;

  /// Returns the copies by name, for a checkpoint: who resumes writes into them.
  std::vector<std::pair<std::string, at::Tensor>> state() const;

 private:
  std::vector<NamedParameter> weights_;
};

/// While it lives, a policy has the weights of a snapshot; then those from before, to the last bit.
class PREFOPT_API BorrowedWeights {
 public:
  /// Throws ConfigError for the snapshot of another policy.
  BorrowedWeights(Policy& policy, const WeightSnapshot& snapshot);
  ~BorrowedWeights();
  BorrowedWeights(const BorrowedWeights&) = delete;
  BorrowedWeights& operator=(const BorrowedWeights&) = delete;

 private:
  Policy& policy_;
  WeightSnapshot own_;
};

/// Moves the policy further along its last step: θ ← θ + α (θ − θ_previous), the outer step of
/// accelerated preference optimization (2410.06293; the form in parameters is unconfirmed).
/// Throws ConfigError, and changes nothing, for α outside of [0, 1), where the sum of steps would
/// have no limit; for adapters, as a sum of two is none of the same rank; for bfloat16 and float16
/// weights, whose rounding is as large as a step; and for the snapshot of another policy.
PREFOPT_API void extrapolate_weights(Policy& policy, const WeightSnapshot& previous, double alpha);

namespace detail {
/// Returns a trained weight that cannot be extrapolated: one of an adapter, or of bfloat16 or
/// float16.
PREFOPT_API std::optional<TrainedWeight> find_not_extrapolable(const Policy& policy);
}  // namespace detail

}  // namespace prefopt
