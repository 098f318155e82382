// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

/// The geometric mixture of two models, token by token (Nash-MD, 2312.00886, appendix F.1):
///   π(v | x, y_<t) ∝ π_policy(v | x, y_<t)^(1−w) π_reference(v | x, y_<t)^w,
/// which is the softmax of the mixed logits (1−w) z_policy + w z_reference. The mixture of whole
/// sequences, eq. 3, is another distribution and cannot be sampled token by token. w is TRL's
/// `mixture_coef`.
///
/// It can be sampled and scored; a decode session runs the sessions of both models. With weight 0
/// or 1 it is the policy or the reference to the last bit, and the other one is not run. It cannot
/// be trained: its parameters require no gradient. Changes to the two models show in it.
class PREFOPT_API MixturePolicy final : public Policy {
 public:
  /// Throws ConfigError for a null model, two vocabularies of different sizes or a weight outside
  /// of [0, 1].
  MixturePolicy(std::shared_ptr<Policy> policy, std::shared_ptr<Policy> reference,
                double reference_weight);

  /// Returns the mixed logits, without a graph.
  PolicyOutput forward(const TokenBatch& batch) override;
  bool packs() const override;
  at::Tensor forward_packed(const PackedTokens& tokens) override;
  OutputHead head() const override;
  std::int64_t vocab_size() const override;
  /// Returns those of both models as `policy.NAME` and `reference.NAME`, detached.
  std::vector<NamedParameter> named_parameters() const override;
  std::string config() const override;
  void check_length(std::int64_t tokens, std::string_view where) const override;
  /// Throws ShapeError or DataError for prompts that either model refuses.
  std::unique_ptr<DecodeSession> start_decoding(
      const std::vector<std::vector<std::int64_t>>& prompts) override;

 private:
  /// The only model that counts, at weight 0 and 1; else null.
  Policy* sole_model() const;

  std::shared_ptr<Policy> policy_, reference_;
  double reference_weight_;
};

}  // namespace prefopt
