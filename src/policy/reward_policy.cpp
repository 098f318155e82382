// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/reward_policy.h"

#include "prefopt/error.h"

namespace prefopt {
namespace {

[[noreturn]] void refuse_log_probs() {
  throw ConfigError(
      "policy: expected a model that predicts tokens, got a reward model, which has a reward for a "
      "whole text only");
}

}  // namespace

at::Tensor RewardPolicy::rewards(const std::vector<TokenRow>& rows) {
  std::vector<TokenSequence> sequences;
  for (const TokenRow& row : rows) {
    sequences.push_back({.prompt = row.prompt, .completion = row.chosen});
  }
  for (const TokenRow& row : rows) {
    sequences.push_back({.prompt = row.prompt, .completion = row.rejected});
  }
  return rewards(sequences);
}

at::Tensor RewardPolicy::token_values(const TokenBatch&) {
  throw ConfigError(
      "value model: expected a model with a value of each token's state, got a reward model of "
      "whole texts");
}

PolicyOutput RewardPolicy::forward(const TokenBatch&) { refuse_log_probs(); }

at::Tensor RewardPolicy::forward_packed(const PackedTokens&) { refuse_log_probs(); }

std::unique_ptr<DecodeSession> RewardPolicy::start_decoding(
    const std::vector<std::vector<std::int64_t>>&) {
  refuse_log_probs();
}

}  // namespace prefopt
