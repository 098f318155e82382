// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "prefopt/policy/sampling.h"

namespace prefopt::detail {

/// The options that change logits by what a sequence holds so far: repetition_penalty, then
/// min_new_tokens.
class LogitRules {
 public:
  LogitRules(const std::vector<std::vector<std::int64_t>>& prompts, const SamplingOptions& options);

  /// Returns the logits [sequences.size(), vocab] of these sequences after the rules; the given
  /// ones, float32 or float64 on the CPU, stay as they are.
  at::Tensor apply(const at::Tensor& logits, const std::vector<std::size_t>& sequences) const;
  /// Adds the token that was drawn for a sequence.
  void add_token(std::size_t sequence, std::int64_t token);

 private:
  struct Sequence {
    std::unordered_set<std::int64_t> tokens = {};  ///< of prompt and completion
    std::int64_t drawn = 0;
  };

  template <class T>
  void apply_to(T* logits, const Sequence& sequence) const;
  bool holds_back_end(const Sequence& sequence) const;

  bool penalizes_;
  double penalty_;
  std::int64_t min_new_tokens_;
  std::vector<std::int64_t> end_tokens_;
  std::vector<Sequence> sequences_;
};

/// Throws ConfigError, led by `where` and ended by `reason`, unless follows_policy(options).
void check_own_distribution(const SamplingOptions& options, std::string_view where,
                            std::string_view reason = {});

}  // namespace prefopt::detail
