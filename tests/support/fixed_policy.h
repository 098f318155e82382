// SPDX-License-Identifier: Apache-2.0
#pragma once

// A policy whose output does not depend on the tokens, and a batch for it.

#include <cstdint>
#include <utility>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/policy/policy.h"

namespace prefopt::testing_support {

/// Gives the logits it was made with, or hidden states and a head, whatever the tokens.
class FixedPolicy final : public Policy {
 public:
  FixedPolicy(PolicyOutput output, at::Tensor weight, std::int64_t vocab_size)
      : output_(std::move(output)), vocab_size_(vocab_size) {
    output_head.weight = std::move(weight);
  }

  PolicyOutput forward(const TokenBatch&) override { return output_; }
  OutputHead head() const override { return output_head; }
  std::int64_t vocab_size() const override { return vocab_size_; }
  std::vector<NamedParameter> named_parameters() const override { return {}; }

  OutputHead output_head;

 private:
  PolicyOutput output_;
  std::int64_t vocab_size_;
};

/// Prompts of 1 and 2 tokens, completions of 3 and 1.
inline TokenBatch small_batch() {
  const std::vector<std::int64_t> prompt_a{4}, completion_a{1, 2, 3}, prompt_b{0, 1},
      completion_b{4};
  return make_batch({{prompt_a, completion_a}, {prompt_b, completion_b}});
}

}  // namespace prefopt::testing_support
