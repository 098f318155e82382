// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/options.h"
#include "prefopt/policy/reference.h"

namespace prefopt {

/// The reference's weights r after an update, with those of the policy, θ.
enum class MovingRule {
  kSoft,  ///< r + alpha (θ - r): TR-DPO (2404.09656); every step, the plain moving average (EMA)
  kHard,  ///< θ (TR-DPO)
  kBema,  ///< a moving average corrected for its lag (2508.00180)
};

/// The `update_steps` of a reference that moves by `update_now` alone, such as once a round.
inline constexpr std::int64_t kNeverUpdate = std::numeric_limits<std::int64_t>::max();

/// Names and defaults are TRL's; those of BEMA apply to kBema alone.
struct MovingReferenceOptions {
  MovingRule rule = MovingRule::kSoft;
  double alpha = 0.6;  ///< of kSoft
  std::int64_t update_steps = 512;
  double ema_power = 0.5;         ///< κ
  double bias_power = 0.2;        ///< η
  double lag = 10;                ///< ρ
  double multiplier = 1;          ///< γ
  double min_ema_multiplier = 0;  ///< β_t's floor
  std::int64_t update_after = 0;  ///< τ

  PREFOPT_API void fields(FieldVisitor& v);
};

/// A reference that moves with the policy (`after_step`). After step t, kSoft and kHard update
/// where t is a multiple of `update_steps`; kBema where t - τ is one and t > τ:
///   m = m + β_t (θ_t - m), r = m + α_t (θ_t - θ_τ), m = θ_τ at first,
///   β_t = max((ρ + γ t)^-κ, min_ema_multiplier), α_t = (ρ + γ t)^-η
/// θ_τ is the policy after step τ; if that step had no update, after the next one that had. Weights
/// that the policy does not train stay unchanged. Those changed by an adapter move as whole
/// matrices, since the mean of two adapters is not the mean of their matrices.
///
/// Arithmetic is in float32, or in float64 for such weights. Narrower weights are a rounded copy of
/// averages in float32, so that no small step is lost. An update between equal weights changes no
/// bit.
class PREFOPT_API MovingReference final : public Reference {
 public:
  /// Starts from the policy's present merged_copy(): with a fresh adapter, the model without it.
  explicit MovingReference(const Policy& policy, const MovingReferenceOptions& options = {});
  /// Starts from `start`, whose weights are overwritten; they may be of another dtype than the
  /// policy's. Throws ConfigError if it lacks a trained weight or shares one with the policy.
  MovingReference(std::shared_ptr<Policy> start, const Policy& policy,
                  const MovingReferenceOptions& options = {});
  ~MovingReference() override;

  at::Tensor sequence_logps(const TokenBatch& batch) override;
  at::Tensor token_logps(const TokenBatch& batch) override;
  at::Tensor tempered_token_logps(const TokenBatch& batch, double temperature) override;
  Policy* policy() override;
  /// Throws ConfigError for a policy with other trained weights than the first one's.
  void after_step(const Policy& policy, std::int64_t step) override;
  /// Updates the reference now, whatever the step: by the rule kHard it becomes the policy, which
  /// at the start of each round is the last iterate. Throws ConfigError for kBema, which goes by
  /// steps, and for a policy with other trained weights.
  void update_now(const Policy& policy);

  std::vector<std::pair<std::string, at::Tensor>> state() const override;
  /// Continues from the state of a reference with the same policy and options. Throws
  /// CheckpointError for another one, and changes nothing then.
  void load_state(const std::vector<std::pair<std::string, at::Tensor>>& saved);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace prefopt
