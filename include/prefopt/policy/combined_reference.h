// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/policy/reference.h"

namespace prefopt {

/// A reference and its weight in a sum.
struct WeightedReference {
  std::shared_ptr<Reference> reference;
  double weight = 1;
};

/// The weighted sum of references, Σ_k w_k log π_k(y | x), for sequences and for tokens. INPO
/// (2407.00617, eq. 8) takes (τ/η) log π_0 + (1 − τ/η) log π_t.
///
/// With weights that add up to 1 this is the log of a geometric mean of probabilities, up to log Z
/// of the prompt, which is left out: the difference of two completions of a prompt does not need
/// it, and losses that do are refused. There is no model of that distribution, so `policy()` is
/// null: nothing can be sampled from it, and losses that ask for its whole distribution are
/// refused, too. MixturePolicy mixes two models token by token, which is another distribution.
///
/// Sums are in float64. A reference of weight 0 is not asked, and weight 1 changes no bit of
/// another one's log-probs: with weights (1, 0) the result is the first reference.
class PREFOPT_API CombinedReference final : public Reference {
 public:
  /// Throws ConfigError for no references, a null one, or weights that are not finite or all 0.
  explicit CombinedReference(std::vector<WeightedReference> parts);

  at::Tensor sequence_logps(const TokenBatch& batch) override;
  /// Returns the widest dtype of the parts.
  at::Tensor token_logps(const TokenBatch& batch) override;
  /// Returns the same sum of the parts' log-probs at that temperature.
  at::Tensor tempered_token_logps(const TokenBatch& batch, double temperature) override;
  /// Moves each part, also those of weight 0.
  void after_step(const Policy& policy, std::int64_t step) override;
  /// Returns the state of each part, its names led by the part's place, as in `0.value.head`.
  std::vector<std::pair<std::string, at::Tensor>> state() const override;
  /// Returns false where more than one reference counts, or the weight is not 1.
  bool is_normalized() const override;
  void flush() override;

 private:
  template <class LogpsOf>
  at::Tensor sum_of(const LogpsOf& logps_of) const;

  std::vector<WeightedReference> parts_;
};

}  // namespace prefopt
