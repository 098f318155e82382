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

/// A model that guides another one's decoding, and the weight of its log-probs.
struct Guide {
  std::shared_ptr<Policy> model;
  double weight = 1;
};

/// A base model whose next-token log-probs others are added to (GenARM, 2410.08193 eq. 7):
///   π(v | x, y_<t) ∝ π_base(v | x, y_<t) Π_j π_j(v | x, y_<t)^(w_j),
/// which is the softmax of z_base + Σ_j w_j z_j. An autoregressive reward model (loss `genarm`) has
/// the weight 1/β; several of them are a trade-off of objectives that is chosen while decoding. A
/// pair of guides π_j and π_ref with weights w and −w adds the log-ratio w log(π_j/π_ref), the
/// token rewards of a model trained with a reference.
///
/// Exact: with w = 1 and the log-ratio of the KL-optimal policy over `base` as its reference, this
/// is that policy. GenARM's own form is not: it sums log-probs of one model, whose normalizers by
/// prefix stay in the product.
///
/// It can be sampled and scored; a decode session runs the sessions of all models. A guide of
/// weight 0 is not run; without others it is the base to the last bit. A token that one of the
/// models rules out stays ruled out. It cannot be trained: its parameters require no gradient.
/// Changes to the models show in it.
class PREFOPT_API GuidedPolicy final : public Policy {
 public:
  /// Throws ConfigError for a null model, vocabularies of different sizes, no guides, or a weight
  /// that is not finite.
  GuidedPolicy(std::shared_ptr<Policy> base, std::vector<Guide> guides);

  /// Returns the summed logits, without a graph.
  PolicyOutput forward(const TokenBatch& batch) override;
  std::int64_t vocab_size() const override;
  /// Returns those of all models as `base.NAME`, `guide0.NAME`, …, detached.
  std::vector<NamedParameter> named_parameters() const override;
  std::string config() const override;
  void check_length(std::int64_t tokens, std::string_view where) const override;
  /// Throws ShapeError or DataError for prompts that one of the models refuses.
  std::unique_ptr<DecodeSession> start_decoding(
      const std::vector<std::vector<std::int64_t>>& prompts) override;

 private:
  std::shared_ptr<Policy> base_;
  std::vector<Guide> guides_;
};

}  // namespace prefopt
