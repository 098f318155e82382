// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "decoder/network.h"

namespace prefopt::detail {

/// The results of a decoder for a prompt, undefined or whole.
struct KeptPrompt {
  at::Tensor keys_and_values, logits;
};

/// The tensors of a network and the versions that they had.
class WeightStamp;

/// The prompts that the process keeps for a network (prefopt/decoder/prompt_cache.h). Nothing is
/// found and nothing is kept while the cache is off, once a tensor of the network has changed, and
/// where one has no version counter.
class KeptPrompts {
 public:
  static KeptPrompts of(const Network& network);

  KeptPrompt find(const std::vector<std::int64_t>& tokens) const;
  void put(const std::vector<std::int64_t>& tokens, const KeptPrompt& prompt) const;

 private:
  std::shared_ptr<const WeightStamp> stamp_;
};

/// Lets the process keep prompts while it lives, up to `bytes` or what another one or
/// set_prompt_cache allows, whichever is more.
class PromptRoom {
 public:
  explicit PromptRoom(std::int64_t bytes);
  ~PromptRoom();
  PromptRoom(const PromptRoom&) = delete;
  PromptRoom& operator=(const PromptRoom&) = delete;

 private:
  std::int64_t bytes_;
};

/// Frees the prompts of weights that have changed, which the next call of a decoder would do.
void drop_past_prompts();

}  // namespace prefopt::detail
