// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/export.h"
#include "prefopt/policy/reward_policy.h"

namespace prefopt {

/// A value model that has only a score head itself and reads the hidden states of the policy. Its
/// gradient goes into the policy as well; its parameters are the head's alone. The policy's layers
/// are computed once more for it.
class PREFOPT_API ValueHead final : public RewardPolicy {
 public:
  /// The head is N(0, initializer_range^2) from LibTorch's default generator.
  explicit ValueHead(std::shared_ptr<Decoder> policy);

  at::Tensor token_values(const TokenBatch& batch) override;
  /// Throws ConfigError: a text as a whole has no reward here.
  at::Tensor rewards(const std::vector<TokenSequence>& sequences) override;
  using RewardPolicy::rewards;
  std::int64_t vocab_size() const override;
  std::vector<NamedParameter> named_parameters() const override;
  void save(const std::string& directory) const override;
  void load_weights(const std::string& directory) override;
  /// Leaves the head whole: it has no other weights.
  void keep_slices(const std::shared_ptr<Ranks>& ranks) override;

 private:
  std::shared_ptr<Decoder> policy_;
  at::Tensor score_;  ///< [1, hidden]
};

}  // namespace prefopt
