// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/export.h"
#include "prefopt/policy/policy.h"

namespace prefopt {

/// A model that gives a text one number, its reward, and no log-probs. It is a Policy by what a
/// trainer, an optimizer and a checkpoint need of one: parameters, adapters, copies and files. A
/// loss whose requirements say `of_rewards` reads its rewards where others read log-probs.
class PREFOPT_API RewardPolicy : public Policy {
 public:
  /// Returns [S] float64: the reward of each prompt with its completion, which may be empty.
  /// Neither the other sequences nor weights and masks of tokens change it. Keeps the graph unless
  /// grad mode is off. Throws ShapeError for no sequences or an empty prompt.
  virtual at::Tensor rewards(const std::vector<TokenSequence>& sequences) = 0;

  /// Returns [2 R]: the rewards of the chosen completions of all rows, then of the rejected ones.
  at::Tensor rewards(const std::vector<TokenRow>& rows);

  /// Returns [tokens] float64: the score of the state that each completion token that counts was
  /// chosen in, sequence after sequence, as a value model's estimate of the return. Keeps the graph
  /// unless grad mode is off. The default throws ConfigError: only whole texts have a score.
  virtual at::Tensor token_values(const TokenBatch& batch);

  // Functions of log-probs: each throws ConfigError.
  PolicyOutput forward(const TokenBatch& batch) final;
  at::Tensor forward_packed(const PackedTokens& tokens) final;
  std::unique_ptr<DecodeSession> start_decoding(
      const std::vector<std::vector<std::int64_t>>& prompts) final;
};

}  // namespace prefopt
